-- name: differences -- what the diff of source and vector table means for an audit
SELECT
    CASE
        WHEN rowvec_action = 'new' THEN 'missing'
        WHEN rowvec_action = 'deleted' THEN 'orphaned'
        WHEN rowvec_action = 'changed' AND fingerprint IS NOT DISTINCT FROM stored_fingerprint THEN 'corrupt'
        WHEN rowvec_action = 'metadata_only' AND metadata_hash IS NOT DISTINCT FROM stored_metadata_hash THEN 'corrupt'
        ELSE 'stale'
    END AS kind,
    CASE
        WHEN rowvec_action = 'new' THEN 'the source has this row, the vector table has not'
        WHEN rowvec_action = 'deleted' THEN 'the vector table has this row, the source has not'
        WHEN rowvec_action = 'changed' AND fingerprint IS NOT DISTINCT FROM stored_fingerprint
            THEN 'the content in the vector table is not what its fingerprint was made of'
        WHEN rowvec_action = 'changed' THEN 'the source has other content by now'
        WHEN metadata_hash IS NOT DISTINCT FROM stored_metadata_hash
            THEN 'the metadata in the vector table is not what its hash was made of'
        ELSE 'the source has other metadata by now'
    END AS reason,
    {key_json} AS key
FROM diff AS d

-- name: hold_vectors -- what the artifacts hold: the fingerprint, and the sha256 of the vector in wire format
CREATE TEMP TABLE held (fingerprint bytea NOT NULL, vector_sha256 bytea NOT NULL) ON COMMIT DROP

-- name: copy_held
COPY held FROM STDIN (FORMAT binary)

-- name: analyze_held
ANALYZE held

-- name: other_vector -- rows whose vector is in artifacts, but is another one there
SELECT {key_json} AS key
FROM {table} AS t
WHERE EXISTS (SELECT FROM held AS h WHERE h.fingerprint = t.fingerprint)
  AND NOT EXISTS (
      SELECT FROM held AS h
      WHERE h.fingerprint = t.fingerprint AND h.vector_sha256 = sha256({send}(t.embedding)))

-- name: not_held -- rows whose vector is in no artifact that can be read
SELECT {key_json} AS key
FROM {table} AS t
WHERE NOT EXISTS (SELECT FROM held AS h WHERE h.fingerprint = t.fingerprint)

-- name: unknown_run
SELECT {key_json} AS key
FROM {table} AS t
WHERE NOT EXISTS (SELECT FROM rowvec.runs AS r WHERE r.run_id = t.run_id AND r.pipeline_id = {pipeline_id})

-- name: artifacts
SELECT name, sha256, rows, bytes FROM rowvec.artifacts WHERE pipeline_id = {pipeline_id} ORDER BY artifact_id

-- name: void -- a row that is not to be trusted loses its fingerprint: the next sync replaces it, from an artifact
UPDATE {table} AS t
SET fingerprint = ''::bytea
FROM unnest({keys}::jsonb[]) AS k (key)
WHERE k.key = {key_json}
