-- name: lock -- one merge into a vector table at a time; it goes with the transaction, so poolers cannot lose it
SELECT pg_advisory_xact_lock(%(space)s, %(pipeline_id)s)

-- name: keep -- autovacuum gives a table up when somebody has waited for it for deadlock_timeout, a second; a wait that
-- ends sooner, as those of a merge do, never gets it. It comes to no table that is held so, and readers and writers do.
SET LOCAL lock_timeout = '30s';
LOCK TABLE {tables} IN SHARE UPDATE EXCLUSIVE MODE;
SET LOCAL lock_timeout = '1s'

-- name: what_is_there -- both go with the merge
SELECT to_regclass(%(staging)s) IS NOT NULL, to_regclass(%(plan)s) IS NOT NULL

-- name: empty_plan -- for a merge that was done, and whose plan went with it
CREATE TABLE {plan} AS
SELECT
    ''::text AS rowvec_action, 0 AS rowvec_batch, {columns}, content, ''::text AS rowvec_vector, fingerprint, metadata_hash
FROM {table} WHERE false

-- name: staged
SELECT
    (SELECT count(*) FROM {staging}),
    (SELECT coalesce(sum(rows), 0) FROM rowvec.loaded WHERE run_id = {run_id})

-- name: analyze_live
ANALYZE live

-- name: analyze_table -- a table that was loaded a moment ago has no statistics, and the first search would pay for it
ANALYZE {table}

-- name: upsert
INSERT INTO {table} ({columns})
SELECT {staged_columns}, {run_id}, now()
FROM {staging} AS s
ON CONFLICT ({key}) DO UPDATE SET {assignments}

-- name: update_metadata -- no vector is touched, so none is written again
UPDATE {table} AS t
SET {assignments} metadata_hash = p.metadata_hash
FROM {plan} AS p
JOIN live AS l ON {same_key_live} AND l.fingerprint = p.fingerprint AND l.metadata_hash = p.metadata_hash
WHERE p.rowvec_action = 'metadata_only' AND {same_key} AND t.fingerprint = p.fingerprint

-- name: forget_fixed_rejects -- rows that have a vector now, or are gone
DELETE FROM rowvec.rejects AS r
USING {table} AS t
WHERE r.pipeline_id = {pipeline_id} AND r.key = {key_json}

-- name: primary_key
ALTER TABLE {staging} ADD PRIMARY KEY ({key})

-- name: publish -- the loaded table becomes the vector table
ALTER TABLE {staging} RENAME TO {name}

-- name: publish_schema
ALTER TABLE {staging} SET SCHEMA {schema}

-- name: merged
UPDATE rowvec.runs SET merged_at = now() WHERE run_id = %(run_id)s

-- name: drop
DROP TABLE IF EXISTS {table}
