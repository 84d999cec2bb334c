-- name: add
INSERT INTO rowvec.rejects AS known (pipeline_id, key, fingerprint, reason, detail, run_id)
SELECT %(pipeline_id)s, key::jsonb, fingerprint, reason, detail, %(run_id)s
FROM unnest(%(keys)s::text[], %(fingerprints)s::bytea[], %(reasons)s::text[], %(details)s::text[])
    AS r (key, fingerprint, reason, detail)
ON CONFLICT (pipeline_id, key) DO UPDATE
SET fingerprint = excluded.fingerprint, reason = excluded.reason, detail = excluded.detail,
    run_id = excluded.run_id, last_seen = now(), attempts = known.attempts + 1

-- name: list
SELECT key, reason, detail, attempts, first_seen, last_seen
FROM rowvec.rejects WHERE pipeline_id = %(pipeline_id)s
ORDER BY last_seen DESC, key
LIMIT %(limit)s

-- name: count
SELECT count(*) FROM rowvec.rejects WHERE pipeline_id = %(pipeline_id)s

-- name: forget
DELETE FROM rowvec.rejects WHERE pipeline_id = %(pipeline_id)s
