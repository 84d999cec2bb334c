-- name: known_in_table
SELECT DISTINCT ON (fingerprint) fingerprint, {pgvector}.{send}(embedding)
FROM {table} WHERE fingerprint = ANY ({fingerprints}::bytea[]) AND embedding IS NOT NULL
