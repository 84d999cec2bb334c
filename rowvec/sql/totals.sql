-- name: totals -- number of rows, and a checksum of (key, fingerprint) in any order; see docs/explanation/consistency.md
SELECT count(*), coalesce(sum(('x' || left(encode(sha256({digest} || fingerprint), 'hex'), 15))::bit(60)::bigint), 0)
FROM {table} AS counted
