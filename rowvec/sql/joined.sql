-- name: diff -- keys whose row and vector do not belong together, by one join; unchanged rows are not stored
-- Content and metadata themselves are compared, and not only their hashes, so that a row that somebody edited in the
-- vector table is found too. This is also cheaper than hashing both sides.
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
SELECT {columns}, content, fingerprint, metadata_hash, true AS rowvec_present FROM {table} AS stored

-- name: stored_nothing -- there is no vector table yet
SELECT {columns}, content, fingerprint, metadata_hash, false AS rowvec_present FROM ({rows}) AS r WHERE false

-- name: leave_out_rejects -- a rejected row is tried again only if its content changes, or what else was at fault
DELETE FROM diff AS d
USING rowvec.rejects AS r
WHERE d.rowvec_action = 'new' AND r.pipeline_id = {pipeline_id} AND r.key = {key_json} AND r.fingerprint = d.fingerprint
  AND {holds}

-- name: analyze_diff -- without statistics, the few rows that changed get a query plan for a million
ANALYZE diff

-- name: count_diff
SELECT
    count(*) FILTER (WHERE rowvec_action = 'new'),
    count(*) FILTER (WHERE rowvec_action = 'changed'),
    count(*) FILTER (WHERE rowvec_action = 'metadata_only'),
    count(*) FILTER (WHERE rowvec_action = 'deleted')
FROM diff

-- name: plan_rows -- the changed rows themselves, as of the same snapshot, batch by batch and equal contents together
-- The table is there already if the stage is tried again because the answer to the first try was lost.
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

-- name: reject_bad_keys -- keys that are NULL in part, or that several rows share, cannot have a vector of their own
INSERT INTO rowvec.rejects AS known (pipeline_id, key, reason, detail, run_id)
SELECT
    {pipeline_id},
    {key_json},
    CASE WHEN {key_is_null} THEN 'null_key' ELSE 'duplicate_key' END,
    CASE WHEN {key_is_null} THEN 'a key column is NULL in ' ELSE 'one key in ' END
        || count(*) || CASE count(*) WHEN 1 THEN ' row' ELSE ' rows' END,
    {run_id}
FROM {relation} AS source
GROUP BY {key}
HAVING count(*) > 1 OR {key_is_null}
ON CONFLICT (pipeline_id, key_digest) DO UPDATE
SET reason = excluded.reason, detail = excluded.detail, run_id = excluded.run_id, last_seen = now(),
    attempts = known.attempts + 1

-- name: reject_unreadable
INSERT INTO rowvec.rejects AS known (pipeline_id, key, reason, detail, run_id)
SELECT {pipeline_id}, key, 'unreadable', detail, {run_id} FROM ({unreadable}) AS source
ON CONFLICT (pipeline_id, key_digest) DO UPDATE
SET reason = excluded.reason, detail = excluded.detail, run_id = excluded.run_id, last_seen = now(),
    attempts = known.attempts + 1

-- name: reject_blank
INSERT INTO rowvec.rejects AS known (pipeline_id, key, reason, detail, run_id)
SELECT {pipeline_id}, {key_json}, 'empty', 'the content is empty or white space only', {run_id}
FROM ({blank}) AS source
ON CONFLICT (pipeline_id, key_digest) DO UPDATE
SET reason = excluded.reason, detail = excluded.detail, run_id = excluded.run_id, last_seen = now(),
    attempts = known.attempts + 1

-- name: count_blank
SELECT count(*) FROM ({blank}) AS source

-- name: add_differences -- the diff of source and vector table as findings of an audit
INSERT INTO {findings} (kind, reason, key, void)
SELECT kind, reason, key, kind = 'corrupt' FROM (SELECT
    CASE
        WHEN rowvec_action = 'new' THEN 'missing'
        WHEN rowvec_action = 'deleted' THEN 'orphaned'
        WHEN rowvec_action = 'changed' AND fingerprint IS NOT DISTINCT FROM rowvec_stored_fingerprint THEN 'corrupt'
        WHEN rowvec_action = 'metadata_only' AND metadata_hash IS NOT DISTINCT FROM rowvec_stored_metadata_hash THEN 'corrupt'
        ELSE 'stale'
    END AS kind,
    CASE
        WHEN rowvec_action = 'new' THEN 'the source has this row, the vector table has not'
        WHEN rowvec_action = 'deleted' THEN 'the vector table has this row, the source has not'
        WHEN rowvec_action = 'changed' AND fingerprint IS NOT DISTINCT FROM rowvec_stored_fingerprint
            THEN 'the content in the vector table is not what its fingerprint was made of'
        WHEN rowvec_action = 'changed' THEN 'the source has other content by now'
        WHEN metadata_hash IS NOT DISTINCT FROM rowvec_stored_metadata_hash
            THEN 'the metadata in the vector table is not what its hash was made of'
        ELSE 'the source has other metadata by now'
    END AS reason,
    {key_json} AS key
FROM diff AS d) AS found
ON CONFLICT DO NOTHING

-- name: add_other_metadata_hashes -- wrong hashes of rows that the diff, which compares the columns, finds unchanged
INSERT INTO {findings} (kind, reason, key, void)
SELECT 'corrupt', 'its metadata_hash is not that of its metadata', {key_json}, true
FROM {table} AS t
JOIN ({rows}) AS wanted ON {same_key}
WHERE wanted.fingerprint = t.fingerprint AND wanted.metadata_hash IS DISTINCT FROM t.metadata_hash
ON CONFLICT DO NOTHING
