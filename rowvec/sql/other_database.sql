-- name: begin_source -- one snapshot of the source; it ends before anything is embedded
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;
SET LOCAL work_mem = '256MB';
SET LOCAL lock_timeout = '30s'

-- name: by_index -- few keys of a large table: without statistics of the queue, the planner may choose to read it all
SET LOCAL enable_seqscan = off;
SET LOCAL enable_hashjoin = off;
SET LOCAL enable_mergejoin = off

-- name: type_exists
SELECT to_regtype({pg_type}) IS NOT NULL

-- name: pairs -- the source's rows as hashes of fixed length
SELECT {digest} AS digest, fingerprint, metadata_hash FROM ({rows}) AS r

-- name: rows -- all rows of the source
SELECT {columns}, content, rowvec_vector, fingerprint, metadata_hash FROM ({rows}) AS r

-- name: rows_of -- the rows that changed
SELECT {columns}, content, rowvec_vector, fingerprint, metadata_hash FROM ({rows}) AS r
WHERE {digest} = ANY ({digests})

-- name: bad_keys -- keys that are NULL in part, or that several rows share
SELECT
    {key_json}::text,
    CASE WHEN {key_is_null} THEN 'null_key' ELSE 'duplicate_key' END,
    CASE WHEN {key_is_null} THEN 'a key column is NULL in ' ELSE 'one key in ' END
        || count(*) || CASE count(*) WHEN 1 THEN ' row' ELSE ' rows' END
FROM {relation} AS source
GROUP BY {key}
HAVING count(*) > 1 OR {key_is_null}

-- name: unreadable_keys
SELECT key::text, 'unreadable', detail FROM ({unreadable}) AS source

-- name: blank_keys
SELECT {key_json}::text, 'empty', 'the content is empty or white space only' FROM ({blank}) AS source

-- name: count_blank
SELECT count(*) FROM ({blank}) AS source
