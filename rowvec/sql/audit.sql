-- name: findings -- each row once, with the first reason found; void and salvage may come from a later one
CREATE UNLOGGED TABLE {findings} (
    key jsonb NOT NULL,
    digest bytea GENERATED ALWAYS AS (rowvec.key_digest(key)) STORED PRIMARY KEY,
    kind text NOT NULL,
    reason text NOT NULL,
    void boolean NOT NULL DEFAULT false,
    salvage boolean NOT NULL DEFAULT false
)

-- name: drop_tables
DROP TABLE IF EXISTS {findings}, {held}

-- name: last_merge
SELECT max(merged_at), max(run_id) FILTER (WHERE merged_at IS NOT NULL)
FROM rowvec.runs WHERE pipeline_id = %(pipeline_id)s

-- name: vectors -- all checks of the vectors, in one pass over the table
INSERT INTO {findings} (kind, reason, key, void)
SELECT 'corrupt', CASE {reasons} END, {key_json}, true FROM {table} AS t WHERE {bad}
ON CONFLICT (digest) DO UPDATE SET void = true

-- name: reason -- of one check
WHEN {condition} THEN {reason}

-- name: journal -- rows that are not as the journal says, except keys that no manifest tells of yet
INSERT INTO {findings} (kind, reason, key, void)
SELECT
    'corrupt',
    CASE
        WHEN s.fingerprint IS NULL THEN 'no run of this pipeline wrote this row'
        WHEN s.fingerprint <> t.fingerprint THEN 'its fingerprint is not the one that its run recorded'
        WHEN s.metadata_hash <> t.metadata_hash THEN 'its metadata_hash is not the one that its run recorded'
        WHEN s.run_id <> t.run_id THEN 'its run_id is not the one that its run recorded'
        ELSE 'its embedded_at is not the one that its run recorded'
    END,
    {key_json}, true
FROM {table} AS t
LEFT JOIN {journal_state} AS s ON {same_key}
WHERE (t.fingerprint, t.metadata_hash, t.run_id, t.embedded_at)
    IS DISTINCT FROM (s.fingerprint, s.metadata_hash, s.run_id, s.embedded_at)
  AND {told}
ON CONFLICT (digest) DO UPDATE SET void = true

-- name: journal_only -- rows that only the journal has
INSERT INTO {findings} (kind, reason, key, void)
SELECT 'corrupt', 'the vector table had this row, and no run of this pipeline deleted it', {key_json}, true
FROM {journal_state} AS t
WHERE NOT EXISTS (SELECT FROM {table} AS s WHERE {same_key}) AND {told}
ON CONFLICT (digest) DO UPDATE SET void = true

-- name: told -- leaves out the keys that no manifest tells of yet; the next run's manifest will
NOT EXISTS (SELECT FROM {unrecorded} AS s WHERE {same_key})

-- name: newest_manifest -- the end of the journal as the ledger has it; no row if the next run restarts the journal
SELECT r.manifest, to_regclass(%(unrecorded)s) IS NOT NULL
FROM rowvec.runs AS r JOIN rowvec.pipelines AS p USING (pipeline_id)
WHERE r.pipeline_id = %(pipeline_id)s AND r.manifest IS NOT NULL AND NOT p.journal_whole
ORDER BY r.run_id DESC LIMIT 1

-- name: hold_vectors -- the vectors in the artifacts: fingerprint, and sha256 of the vector in wire format
CREATE UNLOGGED TABLE {held} (fingerprint bytea NOT NULL, vector_sha256 bytea NOT NULL, artifact_id bigint NOT NULL)

-- name: copy_held
COPY {held} FROM STDIN (FORMAT binary)

-- name: analyze_held
ANALYZE {held}

-- name: other_vector -- rows whose vector differs from the one in the artifacts
INSERT INTO {findings} (kind, reason, key, void)
SELECT 'corrupt', 'its vector is not the one that was paid for and kept', {key_json}, true
FROM {table} AS t
WHERE EXISTS (SELECT FROM {held} AS h WHERE h.fingerprint = t.fingerprint)
  AND NOT EXISTS (
      SELECT FROM {held} AS h
      WHERE h.fingerprint = t.fingerprint AND h.vector_sha256 = sha256({pgvector}.{send}(t.embedding)))
ON CONFLICT (digest) DO UPDATE SET void = true

-- name: not_held -- rows whose vector is in no readable artifact, so that only the table still has it
INSERT INTO {findings} (kind, reason, key, salvage)
SELECT 'corrupt', 'no artifact that can be read holds its vector', {key_json}, true
FROM {table} AS t
WHERE NOT EXISTS (SELECT FROM {held} AS h WHERE h.fingerprint = t.fingerprint)
ON CONFLICT (digest) DO UPDATE SET salvage = true

-- name: unknown_run
INSERT INTO {findings} (kind, reason, key, void)
SELECT 'corrupt', 'its run_id is of no run of this pipeline', {key_json}, true
FROM {table} AS t
WHERE NOT EXISTS (SELECT FROM rowvec.runs AS r WHERE r.run_id = t.run_id AND r.pipeline_id = {pipeline_id})
ON CONFLICT (digest) DO UPDATE SET void = true

-- name: artifacts
SELECT artifact_id, name, sha256, rows, bytes FROM rowvec.artifacts WHERE pipeline_id = {pipeline_id} ORDER BY artifact_id

-- name: explain_kept -- rows that no sync can put right, because the database refuses to remove them
UPDATE {findings} AS f
SET reason = f.reason || '; the database refuses to remove it: ' || r.detail
FROM rowvec.rejects AS r
WHERE r.pipeline_id = {pipeline_id} AND r.reason = 'not_removed' AND r.key = f.key

-- name: counts
SELECT kind, count(*) FROM {findings} GROUP BY kind

-- name: listed
SELECT kind, key, reason FROM {findings} ORDER BY kind, key LIMIT {limit}

-- name: point_elsewhere -- vectors of a lost artifact that another artifact holds too
INSERT INTO rowvec.embeddings (pipeline_id, fingerprint, artifact_id, run_id)
SELECT DISTINCT ON (h.fingerprint) {pipeline_id}, h.fingerprint, h.artifact_id, a.run_id
FROM {held} AS h JOIN rowvec.artifacts AS a USING (artifact_id)
ON CONFLICT (pipeline_id, fingerprint) DO NOTHING

-- name: salvage -- sound rows whose vector is only in the table: one row per fingerprint is enough
-- A repair that was killed may have left rows without a fingerprint. What their vectors were made of is unknown.
SELECT DISTINCT ON (t.fingerprint) {columns}, t.content, t.fingerprint, t.metadata_hash, {pgvector}.{send}(t.embedding)
FROM {table} AS t
JOIN {findings} AS f ON f.key = {key_json}
WHERE f.salvage AND NOT f.void AND octet_length(t.fingerprint) = 32
ORDER BY t.fingerprint

-- name: retell -- makes the next manifest record the rows that were found wrong as they are then
INSERT INTO {unrecorded} ({key})
SELECT {key} FROM {table} AS t WHERE EXISTS (SELECT FROM {findings} AS f WHERE f.key = {key_json})

-- name: retell_gone
INSERT INTO {unrecorded} ({key})
SELECT {key} FROM {journal_state} AS t WHERE EXISTS (SELECT FROM {findings} AS f WHERE f.key = {key_json})

-- name: unrecorded_table
CREATE TABLE IF NOT EXISTS {unrecorded} AS SELECT {key} FROM {table} WHERE false

-- name: void -- a row that cannot be trusted loses its fingerprint, so that the next sync replaces it from an artifact
UPDATE {table} AS t
SET fingerprint = ''::bytea
FROM {findings} AS f
WHERE f.void AND f.key = {key_json}
