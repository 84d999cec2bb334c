-- name: totals -- rows, and an order-independent checksum of (key, fingerprint); docs/consistency.md explains it
SELECT count(*), coalesce(sum(('x' || left(encode(sha256({digest} || fingerprint), 'hex'), 15))::bit(60)::bigint), 0)
FROM {table} AS counted
