-- name: add
INSERT INTO rowvec.rejects AS known (pipeline_id, key, fingerprint, reason, detail, run_id)
SELECT %(pipeline_id)s, key::jsonb, fingerprint, reason, detail, %(run_id)s
FROM unnest(%(keys)s::text[], %(fingerprints)s::bytea[], %(reasons)s::text[], %(details)s::text[])
    AS r (key, fingerprint, reason, detail)
ON CONFLICT (pipeline_id, key_digest) DO UPDATE
SET fingerprint = excluded.fingerprint, metadata_hash = NULL, reason = excluded.reason, detail = excluded.detail,
    sqlstate = NULL, run_id = excluded.run_id, last_seen = now(), attempts = known.attempts + 1

-- name: add_refused -- rows that the database refused
INSERT INTO rowvec.rejects AS known (pipeline_id, key, fingerprint, metadata_hash, reason, detail, sqlstate, run_id)
SELECT {pipeline_id}, {key_json}, s.fingerprint, s.metadata_hash, 'refused', {detail}, {sqlstate}, {run_id}
FROM {table} AS s WHERE {which}
ON CONFLICT (pipeline_id, key_digest) DO UPDATE
SET fingerprint = excluded.fingerprint, metadata_hash = excluded.metadata_hash, reason = excluded.reason,
    detail = excluded.detail, sqlstate = excluded.sqlstate, run_id = excluded.run_id, last_seen = now(),
    attempts = known.attempts + 1

-- name: add_refused_row -- a row that is in no table, because it could not be copied
INSERT INTO rowvec.rejects AS known (pipeline_id, key, fingerprint, metadata_hash, reason, detail, sqlstate, run_id)
VALUES (
    {pipeline_id}, to_jsonb({key}::text[]), {fingerprint}::bytea, {metadata_hash}::bytea,
    'refused', {detail}, {sqlstate}, {run_id})
ON CONFLICT (pipeline_id, key_digest) DO UPDATE
SET fingerprint = excluded.fingerprint, metadata_hash = excluded.metadata_hash, reason = excluded.reason,
    detail = excluded.detail, sqlstate = excluded.sqlstate, run_id = excluded.run_id, last_seen = now(),
    attempts = known.attempts + 1

-- name: add_not_removed -- outdated rows that the database refuses to remove; the new version may be refused too
INSERT INTO rowvec.rejects AS known (pipeline_id, key, reason, detail, sqlstate, run_id)
SELECT {pipeline_id}, {key_json}, 'not_removed', {detail}, {sqlstate}, {run_id}
FROM {table} AS s WHERE {which}
ON CONFLICT (pipeline_id, key_digest) DO UPDATE
SET fingerprint = CASE WHEN {is_refused} THEN known.fingerprint END,
    metadata_hash = CASE WHEN {is_refused} THEN known.metadata_hash END,
    reason = excluded.reason,
    detail = excluded.detail || CASE WHEN {is_refused} THEN '; its new version: ' || known.detail ELSE '' END,
    sqlstate = excluded.sqlstate, run_id = excluded.run_id, last_seen = now(),
    attempts = CASE WHEN {is_refused} THEN known.attempts ELSE known.attempts + 1 END

-- name: is_refused -- this run has refused the row's new version
known.reason = 'refused' AND known.run_id = excluded.run_id

-- name: not_removed
SELECT count(*) OVER (), key::text, detail FROM rowvec.rejects
WHERE pipeline_id = %(pipeline_id)s AND reason = 'not_removed'
ORDER BY key
LIMIT %(limit)s

-- name: list
SELECT key, reason, detail, sqlstate, attempts, first_seen, last_seen
FROM rowvec.rejects WHERE pipeline_id = %(pipeline_id)s
ORDER BY last_seen DESC, key
LIMIT %(limit)s

-- name: count
SELECT count(*) FROM rowvec.rejects WHERE pipeline_id = %(pipeline_id)s

-- name: forget
DELETE FROM rowvec.rejects WHERE pipeline_id = %(pipeline_id)s

-- name: holds -- whether a reject r of a row's key and content is of exactly this row: the row has no vector
(r.metadata_hash IS NULL OR r.metadata_hash = {row}.metadata_hash) AND r.reason <> 'not_removed'

-- name: holds_until_changed -- the same, and the row is not tried again as it is
-- Whether a unique key or the target of a foreign key is free depends on other rows, so each run tries these rows.
(r.metadata_hash IS NULL OR r.metadata_hash = {row}.metadata_hash) AND r.reason <> 'not_removed'
AND coalesce(r.sqlstate NOT IN ('23503', '23505', '23P01'), true)
