-- name: rows_there -- whether the vector table has rows
SELECT EXISTS (SELECT FROM {table})

-- name: known_run -- whether the run of this number in the ledger is the same run
SELECT pipeline_id = %(pipeline_id)s AND started_at = %(started_at)s FROM rowvec.runs WHERE run_id = %(run_id)s

-- name: add_run
INSERT INTO rowvec.runs (
    run_id, pipeline_id, cause, state, started_at, finished_at, merged_at, report, manifest, manifest_sha256, listed)
OVERRIDING SYSTEM VALUE
VALUES (
    %(run_id)s, %(pipeline_id)s, %(cause)s, %(state)s, %(started_at)s, %(finished_at)s, %(finished_at)s, %(report)s,
    %(manifest)s, %(manifest_sha256)s, true)

-- name: next_run
SELECT nextval(pg_get_serial_sequence('rowvec.runs', 'run_id'))

-- name: run_numbers -- the new numbers of runs whose old number was taken
CREATE UNLOGGED TABLE {run_numbers} (old bigint PRIMARY KEY, new bigint NOT NULL)

-- name: add_number
INSERT INTO {run_numbers} VALUES (%(old)s, %(new)s)

-- name: add_artifact -- of no batch: the store says that it is this pipeline's
INSERT INTO rowvec.artifacts (pipeline_id, run_id, last_run_id, batch, name, sha256, rows, bytes, listed)
VALUES (%(pipeline_id)s, %(run_id)s, %(run_id)s, -1, %(name)s, %(sha256)s, %(rows)s, %(bytes)s, true)
ON CONFLICT (pipeline_id, name) DO UPDATE SET listed = true
RETURNING artifact_id

-- name: vectors_table -- the vectors of one artifact
CREATE UNLOGGED TABLE {restored_vectors} (content text, embedding {embedding_type} NOT NULL, fingerprint bytea NOT NULL)

-- name: drop_tables
DROP TABLE IF EXISTS {restored_vectors}, {run_numbers}

-- name: empty_vectors
TRUNCATE {restored_vectors}

-- name: add_embeddings
INSERT INTO rowvec.embeddings (pipeline_id, fingerprint, artifact_id, run_id, cost_usd)
SELECT DISTINCT ON (v.fingerprint)
    {pipeline_id}, v.fingerprint, {artifact_id},
    coalesce(n.new, s.rowvec_paid_by, {run_id}), s.rowvec_cost_usd
FROM {restored_vectors} AS v
LEFT JOIN {journal_state} AS s USING (fingerprint)
LEFT JOIN {run_numbers} AS n ON n.old = s.rowvec_paid_by
ON CONFLICT (pipeline_id, fingerprint) DO NOTHING

-- name: add_rows
INSERT INTO {staging} ({columns})
SELECT {facts} v.content, v.embedding, {bits} s.fingerprint, s.metadata_hash, coalesce(n.new, s.run_id), s.embedded_at
FROM {journal_state} AS s
JOIN {restored_vectors} AS v USING (fingerprint)
LEFT JOIN {run_numbers} AS n ON n.old = s.run_id

-- name: forget_restored -- the rows that remain after the last artifact have no vector in any artifact
DELETE FROM {journal_state} AS s USING {restored_vectors} AS v WHERE v.fingerprint = s.fingerprint

-- name: left_over
SELECT count(*) FROM {journal_state}

-- name: left_keys
SELECT {key_json}::text FROM {journal_state} AS s LIMIT 100

-- name: drop_empty -- this transaction has locked the table and found it empty
DROP TABLE IF EXISTS {table}

-- name: lock
LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE

-- name: set_journal -- whether the next manifest must name every row, and the layout of the last journal entry
UPDATE rowvec.pipelines SET journal_whole = %(whole)s, journal_layout = %(layout)s WHERE pipeline_id = %(pipeline_id)s
