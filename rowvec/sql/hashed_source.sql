-- name: stored_pairs -- the vector table's rows as hashes; a hash that does not fit its row is zeros, which no row has
-- With the source's own vectors the fingerprint covers a text that is not stored, so the fingerprint is not checked.
SELECT
    {digest} AS digest,
    CASE WHEN octet_length(fingerprint) = 32 AND {fingerprint} = fingerprint THEN fingerprint
         ELSE decode(repeat('00', 32), 'hex') END AS fingerprint,
    CASE WHEN octet_length(metadata_hash) = 32 AND {metadata_hash} = metadata_hash THEN metadata_hash
         ELSE decode(repeat('00', 32), 'hex') END AS metadata_hash
FROM {table} AS t

-- name: taken -- rows that were read from the source, in the types in which values travel
CREATE TEMP TABLE taken ({columns}) ON COMMIT DROP

-- name: copy_taken
COPY taken ({columns}) FROM STDIN (FORMAT binary)

-- name: gone -- digests of rows that the source does not have
CREATE TEMP TABLE gone (digest bytea NOT NULL) ON COMMIT DROP

-- name: copy_gone
COPY gone FROM STDIN (FORMAT binary)

-- name: analyze
ANALYZE taken, gone

-- name: leave_out_rejects -- a rejected row is tried again only if its content changes, or what else was at fault
DELETE FROM taken AS d
USING rowvec.rejects AS r
WHERE d.rowvec_action = 'new' AND r.pipeline_id = {pipeline_id} AND r.key = {key_json} AND r.fingerprint = d.fingerprint
  AND {holds}
