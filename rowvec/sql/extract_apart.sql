-- name: begin_source -- one snapshot of another database's source; it ends before anything is embedded
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;
SET LOCAL work_mem = '256MB';
SET LOCAL lock_timeout = '30s'

-- name: sorted -- rows as hashes, in the order in which the diff wants them, all whose digests begin alike as one record:
-- a client takes a record of fifteen rows as fast as one of one. A hash that is NULL or of another length leaves its
-- row out, so that the count does not fit.
COPY (
    SELECT count(*), string_agg(CASE WHEN octet_length(pair) = 80 THEN pair END, ''::bytea ORDER BY pair)
    FROM (
        SELECT substring(digest FROM 1 FOR 2) AS beginning, digest || fingerprint || metadata_hash AS pair
        FROM ({pairs}) AS p
        ORDER BY 1, 2
    ) AS ascending
    GROUP BY beginning
    ORDER BY beginning
) TO STDOUT (FORMAT binary)

-- name: pairs -- the source's rows as hashes, of fixed length each
SELECT {digest} AS digest, fingerprint, metadata_hash FROM ({rows}) AS r

-- name: stored_pairs -- the vector table's; a hash that does not fit its row is zeros, which no row has
-- With the source's own vectors the fingerprint covers a text that is not kept, so it is taken as it is.
SELECT
    {digest} AS digest,
    CASE WHEN octet_length(fingerprint) = 32 AND {fingerprint} = fingerprint THEN fingerprint
         ELSE decode(repeat('00', 32), 'hex') END AS fingerprint,
    CASE WHEN octet_length(metadata_hash) = 32 AND {metadata_hash} = metadata_hash THEN metadata_hash
         ELSE decode(repeat('00', 32), 'hex') END AS metadata_hash
FROM {table}

-- name: rows -- all rows of the source
SELECT {columns}, content, rowvec_vector, fingerprint, metadata_hash FROM ({rows}) AS r

-- name: rows_of -- those that changed
SELECT {columns}, content, rowvec_vector, fingerprint, metadata_hash FROM ({rows}) AS r
WHERE {digest} = ANY ({digests})

-- name: bad_keys -- keys that are NULL in part, or that several rows share
SELECT
    {key_json}::text,
    CASE WHEN {key_is_null} THEN 'null_key' ELSE 'duplicate_key' END,
    CASE WHEN {key_is_null} THEN 'a key column is NULL in ' ELSE 'one key in ' END || count(*) || ' row(s)'
FROM {relation} AS source
GROUP BY {key}
HAVING count(*) > 1 OR {key_is_null}

-- name: blank_keys
SELECT {key_json}::text, 'empty', 'the content is empty or white space only' FROM ({blank}) AS source

-- name: count_blank
SELECT count(*) FROM ({blank}) AS source

-- name: type_exists
SELECT to_regtype({pg_type}) IS NOT NULL

-- name: taken -- what was read of the source, in the types in which values travel
CREATE TEMP TABLE taken ({columns}) ON COMMIT DROP

-- name: copy_taken
COPY taken ({columns}) FROM STDIN (FORMAT binary)

-- name: gone -- digests of rows that the source does not have
CREATE TEMP TABLE gone (digest bytea NOT NULL) ON COMMIT DROP

-- name: copy_gone
COPY gone FROM STDIN (FORMAT binary)

-- name: leave_out_rejects -- a row that could not be embedded is not tried again until its content changes
DELETE FROM taken AS d
USING rowvec.rejects AS r
WHERE d.rowvec_action = 'new' AND r.pipeline_id = {pipeline_id} AND r.key = {key_json} AND r.fingerprint = d.fingerprint

-- name: forget_gone_rejects -- their row is gone, or has other content by now: it is not in the vector table, so it
-- would be among what was read
DELETE FROM rowvec.rejects AS r
WHERE r.pipeline_id = {pipeline_id} AND r.fingerprint IS NOT NULL
  AND NOT EXISTS (SELECT FROM taken AS d WHERE {key_json} = r.key AND d.fingerprint = r.fingerprint)

-- name: analyze
ANALYZE taken, gone

-- name: count_taken
SELECT
    count(*) FILTER (WHERE rowvec_action = 'new'),
    count(*) FILTER (WHERE rowvec_action = 'changed'),
    count(*) FILTER (WHERE rowvec_action = 'metadata_only'),
    (SELECT count(*) FROM gone)
FROM taken

-- name: plan_rows -- laid out as the plan of a source beside the vector table; equal contents together
-- Made anew where the stage is tried again because nobody heard that it was done.
DROP TABLE IF EXISTS {plan};
CREATE TABLE {plan} AS
SELECT
    d.rowvec_action,
    CASE WHEN d.rowvec_action IN ('new', 'changed') THEN {batch} END AS rowvec_batch,
    {typed}
    d.content,
    d.rowvec_vector,
    d.fingerprint,
    d.metadata_hash
FROM taken AS d
ORDER BY rowvec_batch, d.fingerprint

-- name: plan_deletes -- the vector table knows the keys behind the digests
INSERT INTO {plan} (rowvec_action, {key})
SELECT 'deleted', {key} FROM {table} WHERE {digest} IN (SELECT digest FROM gone)

-- name: differences -- what the diff of source and vector table means for an audit
SELECT
    CASE
        WHEN d.rowvec_action = 'new' THEN 'missing'
        WHEN d.rowvec_action = 'changed' AND d.fingerprint = t.fingerprint THEN 'corrupt'
        WHEN d.rowvec_action = 'metadata_only' AND d.metadata_hash = t.metadata_hash THEN 'corrupt'
        ELSE 'stale'
    END,
    CASE
        WHEN d.rowvec_action = 'new' THEN 'the source has this row, the vector table has not'
        WHEN d.rowvec_action = 'changed' AND d.fingerprint = t.fingerprint
            THEN 'the content in the vector table is not what its fingerprint was made of'
        WHEN d.rowvec_action = 'changed' THEN 'the source has other content by now'
        WHEN d.metadata_hash = t.metadata_hash
            THEN 'the metadata in the vector table is not what its hash was made of'
        ELSE 'the source has other metadata by now'
    END,
    {key_json},
    {planned}
FROM taken AS d
LEFT JOIN {table} AS t ON {same_key}
UNION ALL
SELECT 'orphaned', 'the vector table has this row, the source has not', {stored_key_json}, {planned_gone}
FROM {table} AS t WHERE {digest} IN (SELECT digest FROM gone)

-- name: is_planned -- the plan, less what has moved, has the row with this very content: the merge was to write it
EXISTS (SELECT FROM {plan} AS p
        WHERE {same_key} AND p.fingerprint = d.fingerprint AND p.metadata_hash = d.metadata_hash)

-- name: is_planned_gone
EXISTS (SELECT FROM {plan} AS p WHERE {same_key} AND p.rowvec_action = 'deleted')

-- name: rejected -- rows that are known to have no vector
SELECT key, fingerprint FROM rowvec.rejects WHERE pipeline_id = {pipeline_id} AND fingerprint IS NOT NULL

-- name: planned_pairs -- what the source had when it was planned: the plan's rows, and those that it left alone
SELECT {digest} AS digest, fingerprint, metadata_hash FROM {plan} WHERE rowvec_action <> 'deleted'
{left_alone}

-- name: left_alone -- where there is a vector table
UNION ALL
SELECT {digest}, fingerprint, metadata_hash FROM {table} AS t WHERE NOT EXISTS (SELECT FROM {plan} AS p WHERE {same_key})

-- name: planned_digests
SELECT {digest} FROM {plan} WHERE rowvec_action <> 'deleted'

-- name: planned_deletes
SELECT {digest} FROM {plan} WHERE rowvec_action = 'deleted'
