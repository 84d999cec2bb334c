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

-- name: live -- the source as of this transaction's snapshot: what the vector table is to agree with
CREATE TEMP TABLE live ON COMMIT DROP AS SELECT {key}, fingerprint, metadata_hash FROM ({rows}) AS r

-- name: live_waiting -- rows whose content has changed and is not split yet: they have no place in live, and are there
CREATE TEMP TABLE live_waiting ON COMMIT DROP AS {waiting}

-- name: none_waits -- where contents are not split
SELECT {key} FROM live WHERE false

-- name: live_planned -- the source cannot be joined here: what the plan saw of it, less what has moved since
CREATE TEMP TABLE live ON COMMIT DROP AS
SELECT {key}, fingerprint, metadata_hash FROM {plan} WHERE rowvec_action <> 'deleted'

-- name: forget_moved_keys
DELETE FROM {table} WHERE {digest} = ANY ({moved}::bytea[])

-- name: delete_moved_keys
WITH gone AS (DELETE FROM {table} WHERE {digest} = ANY ({moved}::bytea[]) RETURNING {key})
INSERT INTO {unrecorded} ({key}) SELECT {key} FROM gone

-- name: analyze_live
ANALYZE live

-- name: analyze_table -- a table that was loaded a moment ago has no statistics, and the first search would pay for it
ANALYZE {table}

-- name: forget_moved -- staged rows whose source has changed since they were read
DELETE FROM {staging} AS s
WHERE NOT EXISTS (SELECT FROM live AS l WHERE {same_key} AND l.fingerprint = s.fingerprint)

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

-- name: delete_gone -- whatever the source does not have (any more) with this very content: orphans, stale rows, blanks
WITH gone AS (
    DELETE FROM {table} AS t
    WHERE NOT EXISTS (SELECT FROM live AS l WHERE {same_key} AND l.fingerprint = t.fingerprint)
    RETURNING {key})
INSERT INTO {unrecorded} ({key}) SELECT {key} FROM gone

-- name: delete_planned -- what the plan saw deleted, and rows whose new content has no vector
DELETE FROM {table} AS t
USING {plan} AS p
WHERE {same_key} AND (
    p.rowvec_action = 'deleted' {and_same_text}
    OR p.rowvec_action = 'changed' AND p.fingerprint IS DISTINCT FROM t.fingerprint
)

-- name: count_gone -- vectors whose key the source does not have at all, and all vectors
SELECT
    (SELECT count(*) FROM {table} AS t WHERE NOT EXISTS (SELECT FROM live AS l WHERE {same_row})
       AND NOT EXISTS (SELECT FROM live_waiting AS w WHERE {same_row_waiting})),
    (SELECT count(*) FROM {table})

-- name: any_reject -- what was set aside has no vector, and is in the source all the same
SELECT EXISTS (SELECT FROM rowvec.rejects WHERE pipeline_id = %(pipeline_id)s)

-- name: agree -- each row of the source has its vector, and there is no other; nothing waits to be split
SELECT NOT EXISTS (
    SELECT FROM live AS l
    FULL JOIN {table} AS t ON {same_key}
    WHERE l.fingerprint IS DISTINCT FROM t.fingerprint OR l.metadata_hash IS DISTINCT FROM t.metadata_hash
) AND NOT EXISTS (SELECT FROM live_waiting)

-- name: rejects_mended -- rows that have a vector now, or are gone
DELETE FROM rowvec.rejects AS r
USING {table} AS t
WHERE r.pipeline_id = {pipeline_id} AND r.key = {key_json}

-- name: rejects_gone
DELETE FROM rowvec.rejects AS r
WHERE r.pipeline_id = {pipeline_id} AND r.fingerprint IS NOT NULL
  AND NOT EXISTS (SELECT FROM live AS l WHERE {key_json} = r.key AND l.fingerprint = r.fingerprint)

-- name: without_vector -- rows of the source that have neither a vector nor a place among the rejects
CREATE TEMP TABLE without_vector ON COMMIT DROP AS
SELECT
    {live_key},
    l.fingerprint,
    EXISTS (SELECT FROM {plan} AS p WHERE {same_key_p} AND p.fingerprint = l.fingerprint) AS rowvec_planned
FROM live AS l
WHERE NOT EXISTS (SELECT FROM {table} AS t WHERE {same_key_t} AND t.fingerprint = l.fingerprint)
  AND NOT EXISTS (
      SELECT FROM rowvec.rejects AS r
      WHERE r.pipeline_id = {pipeline_id} AND r.key = {key_json} AND r.fingerprint = l.fingerprint)

-- name: pending -- they came after the plan was made
SELECT
    (SELECT count(*) FROM without_vector WHERE NOT rowvec_planned)
    + (SELECT count(*) FROM live_waiting)
    + (SELECT count(*) FROM live AS l JOIN {table} AS t ON {same_key_t}
       WHERE t.fingerprint = l.fingerprint AND t.metadata_hash <> l.metadata_hash)

-- name: missing -- they were in the plan with this very content, and ought to be there
SELECT {key_json}::text FROM without_vector AS w WHERE rowvec_planned

-- name: forget_pending -- what came later is not this run's to answer for
DELETE FROM live AS l
USING without_vector AS w
WHERE {same_key} AND w.fingerprint = l.fingerprint AND NOT w.rowvec_planned

-- name: totals -- rows, and an order-independent checksum of (key, fingerprint); docs/consistency.md explains it
SELECT count(*), coalesce(sum(('x' || left(encode(sha256({digest} || fingerprint), 'hex'), 15))::bit(60)::bigint), 0)
FROM {table} AS counted

-- name: forget_unembeddable -- once pending rows are known, what is left of the source is what must have a vector
DELETE FROM live AS l
USING rowvec.rejects AS r
WHERE r.pipeline_id = {pipeline_id} AND r.key = {key_json} AND r.fingerprint = l.fingerprint

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
