-- name: remember_table -- the changed keys that no manifest covers yet; it outlives a killed run
CREATE TABLE IF NOT EXISTS {unrecorded} AS SELECT {key} FROM {plan} WHERE false

-- name: remember_planned
INSERT INTO {unrecorded} ({key}) SELECT {key} FROM {plan}

-- name: forget_table
DROP TABLE IF EXISTS {unrecorded}

-- name: restart -- the next manifest must name every row
UPDATE rowvec.pipelines SET journal_whole = true WHERE pipeline_id = %(pipeline_id)s

-- name: due -- must the manifest name every row; the layout of the last entry; is an artifact new; the last manifest;
-- are there notes of changed keys; the time
SELECT
    p.journal_whole,
    p.journal_layout,
    -- What was taken in from the store need be named only once a row shows it.
    EXISTS (SELECT FROM rowvec.artifacts AS a WHERE a.pipeline_id = p.pipeline_id AND NOT a.listed AND a.batch >= 0),
    (SELECT r.manifest FROM rowvec.runs AS r
     WHERE r.pipeline_id = p.pipeline_id AND r.manifest IS NOT NULL ORDER BY r.run_id DESC LIMIT 1),
    to_regclass(%(unrecorded)s) IS NOT NULL,
    clock_timestamp()
FROM rowvec.pipelines AS p
WHERE p.pipeline_id = %(pipeline_id)s

-- name: noted
SELECT to_regclass({unrecorded}) IS NOT NULL

-- name: any_change
SELECT EXISTS (SELECT FROM {unrecorded})

-- name: export -- rows in the journal's layout; a key without a row was deleted
COPY (
    SELECT {columns} t.fingerprint, t.metadata_hash, t.run_id, t.embedded_at, e.run_id, e.cost_usd
    FROM {rows}
    LEFT JOIN rowvec.embeddings AS e ON e.pipeline_id = {pipeline_id} AND e.fingerprint = t.fingerprint
) TO STDOUT (FORMAT csv)

-- name: every_row
{table} AS t

-- name: changed_rows
(SELECT DISTINCT {key} FROM {unrecorded}) AS k LEFT JOIN {table} AS t ON {same_key}

-- name: new_artifacts
SELECT name, sha256, rows, bytes FROM rowvec.artifacts
WHERE pipeline_id = %(pipeline_id)s AND NOT listed
ORDER BY artifact_id

-- name: all_artifacts -- those that an embedding points to
SELECT a.name, a.sha256, a.rows, a.bytes FROM rowvec.artifacts AS a
WHERE a.pipeline_id = %(pipeline_id)s
  AND EXISTS (SELECT FROM rowvec.embeddings AS e WHERE e.artifact_id = a.artifact_id)
ORDER BY a.artifact_id

-- name: new_runs -- with the run that writes the manifest, which is still running
SELECT
    run_id, cause,
    -- Older versions know neither of the last two.
    CASE WHEN state = 'running' THEN 'succeeded' WHEN state IN ('lost', 'cancelled') THEN 'abandoned' ELSE state END,
    started_at,
    coalesce(finished_at, merged_at), coalesce((report ->> 'embedded')::int, 0),
    coalesce((report ->> 'tokens')::bigint, 0), coalesce((report ->> 'cost_usd')::float8, 0)
FROM rowvec.runs
WHERE pipeline_id = %(pipeline_id)s AND state <> 'planned' AND NOT listed
ORDER BY run_id

-- name: all_runs -- those that a row, a vector or an artifact still comes from
SELECT
    run_id, cause,
    -- Older versions know neither of the last two.
    CASE WHEN state = 'running' THEN 'succeeded' WHEN state IN ('lost', 'cancelled') THEN 'abandoned' ELSE state END,
    started_at,
    coalesce(finished_at, merged_at), coalesce((report ->> 'embedded')::int, 0),
    coalesce((report ->> 'tokens')::bigint, 0), coalesce((report ->> 'cost_usd')::float8, 0)
FROM rowvec.runs
WHERE run_id IN (
        SELECT run_id FROM {table}
        UNION SELECT run_id FROM rowvec.embeddings WHERE pipeline_id = {pipeline_id}
        UNION SELECT run_id FROM rowvec.artifacts WHERE pipeline_id = {pipeline_id}
        UNION SELECT {run_id})
  AND pipeline_id = {pipeline_id}
ORDER BY run_id

-- name: list_artifacts -- those that a manifest in the store names
UPDATE rowvec.artifacts SET listed = true
WHERE pipeline_id = %(pipeline_id)s AND (%(whole)s OR name = ANY (%(names)s)) AND NOT listed

-- name: list_runs
UPDATE rowvec.runs SET listed = true WHERE run_id = ANY (%(runs)s) AND NOT listed

-- name: continue -- the next manifest can link to the one before
UPDATE rowvec.pipelines SET journal_whole = false, journal_layout = %(layout)s WHERE pipeline_id = %(pipeline_id)s

-- name: state_table -- the rows of the vector table, as far as the journal has them
CREATE UNLOGGED TABLE {journal_state} ({columns}, PRIMARY KEY ({key}))

-- name: entry_table
CREATE UNLOGGED TABLE {journal_entry} (LIKE {journal_state})

-- name: copy_whole
COPY {journal_state} FROM STDIN (FORMAT csv)

-- name: copy_entry
COPY {journal_entry} FROM STDIN (FORMAT csv)

-- name: apply_entry
INSERT INTO {journal_state} SELECT * FROM {journal_entry}
ON CONFLICT ({key}) DO UPDATE SET {assignments}

-- name: empty_entry
TRUNCATE {journal_entry}

-- name: forget_deleted
DELETE FROM {journal_state} WHERE fingerprint IS NULL

-- name: analyze_state
ANALYZE {journal_state}

-- name: drop_state
DROP TABLE IF EXISTS {journal_state}, {journal_entry}
