-- name: lock -- one merge into a vector table at a time; the lock ends with the transaction, so no pooler can lose it
SELECT pg_advisory_xact_lock(%(space)s, %(pipeline_id)s)

-- name: keep -- makes autovacuum leave the tables and stay away from them; readers and writers are not blocked
-- Autovacuum leaves a table only for a process that has waited for deadlock_timeout, a second. The other waits of a
-- merge are shorter.
SET LOCAL lock_timeout = '30s';
LOCK TABLE {tables} IN SHARE UPDATE EXCLUSIVE MODE;
SET LOCAL lock_timeout = '1s'

-- name: what_is_there -- the merge drops both tables
SELECT to_regclass(%(staging)s) IS NOT NULL, to_regclass(%(plan)s) IS NOT NULL

-- name: empty_plan -- for a merge that is committed and has dropped its plan
CREATE TABLE {plan} AS
SELECT
    ''::text AS rowvec_action, 0 AS rowvec_batch, {columns}, content, ''::text AS rowvec_vector, fingerprint, metadata_hash
FROM {table} WHERE false

-- name: empty_scope -- likewise, for a run that compared a part
CREATE TABLE {scope} AS SELECT {key} FROM {table} WHERE false

-- name: staged
SELECT
    (SELECT count(*) FROM {staging}),
    (SELECT coalesce(sum(rows), 0) FROM rowvec.loaded WHERE run_id = {run_id})

-- name: analyze_live
ANALYZE live

-- name: analyze_table -- a table that was just loaded has no statistics, which would slow down the first search
ANALYZE {table}

-- name: upsert
INSERT INTO {table} ({columns})
SELECT {staged_columns}, {run_id}, now()
FROM {staging} AS s
WHERE {within}
ON CONFLICT ({key}) DO UPDATE SET {assignments}

-- name: update_metadata -- writes no vector again
UPDATE {table} AS t
SET {assignments} metadata_hash = s.metadata_hash
FROM {plan} AS s
JOIN live AS l ON {same_key_live} AND l.fingerprint = s.fingerprint AND l.metadata_hash = s.metadata_hash
WHERE {within} AND {same_key} AND t.fingerprint = s.fingerprint

-- name: only_metadata
s.rowvec_action = 'metadata_only'

-- name: check_constraints -- a deferred constraint of the user's speaks in the statement that it refuses, or here
SET CONSTRAINTS ALL IMMEDIATE

-- name: condemn -- the keys to delete, in a table of their own, so that they can be deleted in parts
CREATE TEMP TABLE condemned ON COMMIT DROP AS {keys}

-- name: spare
DROP TABLE pg_temp.condemned

-- name: delete_condemned
WITH removed AS (DELETE FROM {table} AS t USING pg_temp.condemned AS s WHERE {within} AND {same_key} RETURNING {key})
INSERT INTO {unrecorded} ({columns}) SELECT {columns} FROM removed

-- name: refused_versions -- what the vector table still has of rows whose new version this run could not write
SELECT {key}
FROM {plan} AS p
JOIN rowvec.rejects AS r ON r.pipeline_id = {pipeline_id} AND r.run_id = {run_id} AND r.reason = 'refused'
    AND r.key = {key_json} AND r.fingerprint = p.fingerprint
JOIN {table} AS t ON {same_key}
WHERE t.fingerprint IS DISTINCT FROM p.fingerprint OR t.metadata_hash IS DISTINCT FROM p.metadata_hash
   OR t.content IS DISTINCT FROM p.content

-- name: displace -- what rows should become whose metadata alone was refused: they may stand in each other's way
CREATE TEMP TABLE displaced ON COMMIT DROP AS
SELECT {columns}
FROM {plan} AS s
JOIN live AS l ON {same_key_live} AND l.fingerprint = s.fingerprint AND l.metadata_hash = s.metadata_hash
JOIN rowvec.rejects AS r ON r.pipeline_id = {pipeline_id} AND r.run_id = {run_id} AND r.reason = 'refused'
    AND r.key = {key_json} AND r.fingerprint = s.fingerprint
JOIN {table} AS t ON {same_key} AND t.fingerprint = s.fingerprint
WHERE {only_metadata}

-- name: put_back -- after their old versions are gone
INSERT INTO {table} ({columns}) SELECT {columns} FROM pg_temp.displaced AS s WHERE {within}

-- name: forget_fixed_rejects -- rejects of rows that have a vector now
DELETE FROM rowvec.rejects AS r
USING {table} AS t
WHERE r.pipeline_id = {pipeline_id} AND r.key = {key_json} AND r.reason <> 'not_removed'

-- name: forget_removed -- outdated rows that this merge has removed, or did not find any more
-- Those that it could not remove have the time of this transaction. An earlier one may have a later time: a standby whose
-- clock is behind has taken over.
DELETE FROM rowvec.rejects WHERE pipeline_id = {pipeline_id} AND reason = 'not_removed' AND last_seen <> now()

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
