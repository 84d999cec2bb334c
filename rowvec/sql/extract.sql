-- name: begin -- one snapshot; a join in memory where it fits (4 MB, the default, spills at 40,000 rows); in parallel
-- The planner takes sha256 for as cheap as an addition and expects most rows to differ: left alone it works serially.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;
SET LOCAL work_mem = '256MB';
SET LOCAL parallel_tuple_cost = 0.001;
SET LOCAL lock_timeout = '1s'

-- name: diff -- keys whose row and vector do not belong together, by one join; unchanged rows leave no trace
-- Content and metadata are compared themselves, and not only by hash, so that a row somebody edited in the vector table
-- is found too. It is also cheaper than hashing both sides.
CREATE TEMP TABLE diff ON COMMIT DROP AS
SELECT
    {coalesced_key},
    CASE
        WHEN NOT coalesce(stored.rowvec_present, false) THEN 'new'
        WHEN wanted.fingerprint IS NULL THEN 'deleted'
        WHEN wanted.fingerprint IS DISTINCT FROM stored.fingerprint
            OR wanted.content IS DISTINCT FROM stored.content THEN 'changed'
        ELSE 'metadata_only'
    END AS rowvec_action,
    wanted.fingerprint,
    wanted.metadata_hash,
    stored.fingerprint AS rowvec_stored_fingerprint,
    stored.metadata_hash AS rowvec_stored_metadata_hash
FROM ({rows}) AS wanted
FULL JOIN ({stored}) AS stored ON {same_key}
WHERE wanted.fingerprint IS DISTINCT FROM stored.fingerprint
   OR wanted.content IS DISTINCT FROM stored.content
   {or_metadata_differs}

-- name: stored -- what the vector table holds
SELECT {columns}, content, fingerprint, metadata_hash, true AS rowvec_present FROM {table}

-- name: stored_nothing -- there is no vector table yet
SELECT {columns}, content, fingerprint, metadata_hash, false AS rowvec_present FROM ({rows}) AS r WHERE false

-- name: leave_out_rejects -- a row that could not be embedded is not tried again until its content changes
DELETE FROM diff AS d
USING rowvec.rejects AS r
WHERE d.rowvec_action = 'new' AND r.pipeline_id = {pipeline_id} AND r.key = {key_json} AND r.fingerprint = d.fingerprint

-- name: plan_rows -- the changed rows themselves, as of the same snapshot, batch by batch and equal contents together
-- Made anew where the stage is tried again because nobody heard that it was done.
DROP TABLE IF EXISTS {plan};
CREATE TABLE {plan} AS
SELECT
    d.rowvec_action,
    CASE WHEN d.rowvec_action IN ('new', 'changed') THEN {batch} END AS rowvec_batch,
    {diff_key},
    {row_metadata}
    r.content,
    r.rowvec_vector,
    d.fingerprint,
    d.metadata_hash
FROM diff AS d
LEFT JOIN ({rows}) AS r ON d.rowvec_action <> 'deleted' AND {same_key}
ORDER BY rowvec_batch, d.fingerprint

-- name: batch -- by the fingerprint's leading 24 bits: even shares, and equal contents never in two batches
(((((get_byte(d.fingerprint, 0) << 16) + (get_byte(d.fingerprint, 1) << 8) + get_byte(d.fingerprint, 2))::bigint)
    * {batches}) >> 24)::int

-- name: index_plan
CREATE INDEX ON {plan} (rowvec_batch)

-- name: analyze_diff -- or the plan for the few rows that changed is the plan for a million
ANALYZE diff

-- name: count_diff
SELECT
    count(*) FILTER (WHERE rowvec_action = 'new'),
    count(*) FILTER (WHERE rowvec_action = 'changed'),
    count(*) FILTER (WHERE rowvec_action = 'metadata_only'),
    count(*) FILTER (WHERE rowvec_action = 'deleted')
FROM diff

-- name: count_texts -- distinct contents to embed, and how many of them are paid for already
SELECT count(*), count(*) FILTER (WHERE {paid_for})
FROM (SELECT DISTINCT ON (fingerprint) fingerprint, content FROM {plan} WHERE rowvec_batch IS NOT NULL) AS p

-- name: paid_for -- by any generation, and as a longer vector where that can be cut to size
(
    EXISTS (
        SELECT FROM rowvec.embeddings AS e
        WHERE e.pipeline_id = ANY (rowvec.generations({pipeline_id})) AND e.fingerprint = p.fingerprint)
    OR EXISTS (
        SELECT FROM rowvec.answers AS a
        WHERE a.pipeline_id = ANY (rowvec.generations({pipeline_id})) AND a.fingerprint = p.fingerprint)
    OR EXISTS (
        SELECT FROM unnest({longer}::bytea[]) AS longer (digest)
        JOIN rowvec.embeddings AS e
          ON e.pipeline_id = ANY (rowvec.generations({pipeline_id}))
         AND e.fingerprint = sha256(longer.digest || convert_to(coalesce(p.content, ''), 'UTF8')))
)

-- name: count_rows
SELECT count(*) FROM {table}

-- name: reject_bad_keys -- keys that are NULL in part, or that several rows share, cannot have a vector of their own
INSERT INTO rowvec.rejects AS known (pipeline_id, key, reason, detail, run_id)
SELECT
    {pipeline_id},
    {key_json},
    CASE WHEN {key_is_null} THEN 'null_key' ELSE 'duplicate_key' END,
    CASE WHEN {key_is_null} THEN 'a key column is NULL in ' ELSE 'one key in ' END || count(*) || ' row(s)',
    {run_id}
FROM {relation} AS source
GROUP BY {key}
HAVING count(*) > 1 OR {key_is_null}
ON CONFLICT (pipeline_id, key) DO UPDATE
SET reason = excluded.reason, detail = excluded.detail, run_id = excluded.run_id, last_seen = now(),
    attempts = known.attempts + 1

-- name: reject_blank
INSERT INTO rowvec.rejects AS known (pipeline_id, key, reason, detail, run_id)
SELECT {pipeline_id}, {key_json}, 'empty', 'the content is empty or white space only', {run_id}
FROM ({blank}) AS source
ON CONFLICT (pipeline_id, key) DO UPDATE
SET reason = excluded.reason, detail = excluded.detail, run_id = excluded.run_id, last_seen = now(),
    attempts = known.attempts + 1

-- name: count_blank
SELECT count(*) FROM ({blank}) AS source

-- name: forget_mended -- rejects of the kinds that every extract finds anew, and that this one did not find
DELETE FROM rowvec.rejects
WHERE pipeline_id = {pipeline_id} AND run_id <> {run_id}
  AND reason IN (
      'null_key', 'duplicate_key', 'empty', 'unreadable',
      'missing_image', 'not_an_image', 'broken_image', 'image_too_large')

-- name: count_rejects
SELECT count(*) FROM rowvec.rejects WHERE pipeline_id = {pipeline_id}
