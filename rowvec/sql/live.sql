-- name: from_source -- the source in this transaction's snapshot: the vector table must agree with it
CREATE TEMP TABLE live ON COMMIT DROP AS SELECT {key}, fingerprint, metadata_hash FROM ({rows}) AS r

-- name: pending_rows -- rows whose content has changed and is not split yet: they are in the source and not in live
CREATE TEMP TABLE live_pending ON COMMIT DROP AS {unsplit}

-- name: from_plan -- the source as the plan saw it, without the rows that have moved since
CREATE TEMP TABLE live ON COMMIT DROP AS
SELECT {key}, fingerprint, metadata_hash FROM {plan} WHERE rowvec_action <> 'deleted'

-- name: drop_moved -- staged rows whose source row has changed since it was read
DELETE FROM {staging} AS s
WHERE NOT EXISTS (SELECT FROM live AS l WHERE {same_key} AND l.fingerprint = s.fingerprint)

-- name: drop_moved_keys
DELETE FROM {table} WHERE {digest} = ANY ({moved}::bytea[])

-- name: delete_moved_keys
WITH gone AS (DELETE FROM {table} AS t WHERE {in_scope} AND {digest} = ANY ({moved}::bytea[]) RETURNING {key})
INSERT INTO {unrecorded} ({key}) SELECT {key} FROM gone

-- name: any_reject -- a rejected row has no vector, and is still in the source
SELECT EXISTS (SELECT FROM rowvec.rejects WHERE pipeline_id = %(pipeline_id)s)

-- name: agree -- each row of the source has its vector, there is no other vector, and every content is split
SELECT NOT EXISTS (
    SELECT FROM live AS l
    FULL JOIN {table} AS t ON {same_key}
    WHERE l.fingerprint IS DISTINCT FROM t.fingerprint OR l.metadata_hash IS DISTINCT FROM t.metadata_hash
) AND NOT EXISTS (SELECT FROM live_pending)

-- name: count_gone -- the number of vectors whose key the source does not have at all, and of all vectors
SELECT
    (SELECT count(*) FROM {table} AS t WHERE NOT EXISTS (SELECT FROM live AS l WHERE {same_row})
       AND NOT EXISTS (SELECT FROM live_pending AS p WHERE {same_row_pending})),
    {stored}

-- name: count_stored
(SELECT count(*) FROM {table} AS t)

-- name: delete_gone -- vectors without a source row of exactly this content: orphans, stale rows, blank rows
WITH gone AS (
    DELETE FROM {table} AS t
    WHERE {in_scope} AND NOT EXISTS (SELECT FROM live AS l WHERE {same_key} AND l.fingerprint = t.fingerprint)
    RETURNING {key})
INSERT INTO {unrecorded} ({key}) SELECT {key} FROM gone

-- name: delete_planned -- rows that the plan deletes, and rows whose new content has no vector
DELETE FROM {table} AS t
USING {plan} AS p
WHERE {same_key} AND (
    p.rowvec_action = 'deleted' {and_same_text}
    OR p.rowvec_action = 'changed' AND p.fingerprint IS DISTINCT FROM t.fingerprint
)

-- name: planned_gone -- the keys that delete_planned deletes, in two parts
SELECT {key} FROM {table} AS t, {plan} AS p WHERE {same_key} AND p.rowvec_action = 'deleted' {and_same_text}

-- name: moved_keys
SELECT {key} FROM {table} AS t WHERE {digest} = ANY ({moved}::bytea[])

-- name: planned_outdated
SELECT {key} FROM {table} AS t, {plan} AS p
WHERE {same_key} AND p.rowvec_action = 'changed' AND p.fingerprint IS DISTINCT FROM t.fingerprint

-- name: forget_gone_rejects
DELETE FROM rowvec.rejects AS r
WHERE r.pipeline_id = {pipeline_id} AND r.fingerprint IS NOT NULL
  AND r.reason <> 'not_removed' AND {among}
  AND NOT EXISTS (
      SELECT FROM live AS l WHERE {key_json} = r.key AND l.fingerprint = r.fingerprint
      AND (r.metadata_hash IS NULL OR r.metadata_hash = l.metadata_hash))

-- name: without_vector -- rows of the source that have no vector and are not rejected
CREATE TEMP TABLE without_vector ON COMMIT DROP AS
SELECT
    {live_key},
    l.fingerprint,
    EXISTS (SELECT FROM {plan} AS p WHERE {same_key_p} AND p.fingerprint = l.fingerprint) AS rowvec_planned
FROM live AS l
WHERE NOT EXISTS (SELECT FROM {table} AS t WHERE {same_key_t} AND t.fingerprint = l.fingerprint)
  AND NOT EXISTS (
      SELECT FROM rowvec.rejects AS r
      WHERE r.pipeline_id = {pipeline_id} AND r.key = {key_json} AND r.fingerprint = l.fingerprint
        AND (r.metadata_hash IS NULL OR r.metadata_hash = l.metadata_hash))

-- name: count_pending -- rows that came or changed after the plan was made
SELECT
    (SELECT count(*) FROM without_vector WHERE NOT rowvec_planned)
    + (SELECT count(*) FROM live_pending)
    + (SELECT count(*) FROM live AS l JOIN {table} AS t ON {same_key_t}
       WHERE t.fingerprint = l.fingerprint AND t.metadata_hash <> l.metadata_hash)

-- name: missing -- rows that were planned with exactly this content, and should have a vector
SELECT {key_json}::text FROM without_vector AS w WHERE rowvec_planned

-- name: leave_out_pending -- the next sync embeds these rows
DELETE FROM live AS l
USING without_vector AS w
WHERE {same_key} AND w.fingerprint = l.fingerprint AND NOT w.rowvec_planned

-- name: leave_out_rejected -- after this, live has exactly the rows that must have a vector
DELETE FROM live AS l
USING rowvec.rejects AS r
WHERE r.pipeline_id = {pipeline_id} AND r.key = {key_json} AND r.fingerprint = l.fingerprint
  AND (r.metadata_hash IS NULL OR r.metadata_hash = l.metadata_hash)

-- name: gone -- the keys that delete_gone deletes, in two parts: rows that the source does not have at all
SELECT {key} FROM {table} AS t WHERE NOT EXISTS (SELECT FROM live AS l WHERE {same_key})

-- name: outdated -- and rows that have other content in the source
SELECT {key} FROM {table} AS t
WHERE EXISTS (SELECT FROM live AS l WHERE {same_key})
  AND NOT EXISTS (SELECT FROM live AS l WHERE {same_key} AND l.fingerprint = t.fingerprint)
