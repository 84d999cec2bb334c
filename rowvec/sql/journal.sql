-- name: remember_table -- keys whose rows changed and that no manifest tells of yet; a killed run leaves it to the next
CREATE TABLE IF NOT EXISTS {unrecorded} AS SELECT {key} FROM {plan} WHERE false

-- name: remember_planned
INSERT INTO {unrecorded} ({key}) SELECT {key} FROM {plan}

-- name: forget_table
DROP TABLE IF EXISTS {unrecorded}

-- name: whole -- the table begins anew: so does its journal
UPDATE rowvec.pipelines SET journal_whole = true WHERE pipeline_id = %(pipeline_id)s

-- name: due -- must every row be told, in which layout was the last entry, is an artifact new, what came before, and when is it?
SELECT
    p.journal_whole,
    p.journal_layout,
    EXISTS (SELECT FROM rowvec.artifacts AS a WHERE a.pipeline_id = p.pipeline_id AND NOT a.listed),
    (SELECT r.manifest FROM rowvec.runs AS r
     WHERE r.pipeline_id = p.pipeline_id AND r.manifest IS NOT NULL ORDER BY r.run_id DESC LIMIT 1),
    to_regclass(%(unrecorded)s) IS NOT NULL,
    clock_timestamp()
FROM rowvec.pipelines AS p
WHERE p.pipeline_id = %(pipeline_id)s

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

-- name: all_artifacts -- that hold something
SELECT a.name, a.sha256, a.rows, a.bytes FROM rowvec.artifacts AS a
WHERE a.pipeline_id = %(pipeline_id)s
  AND EXISTS (SELECT FROM rowvec.embeddings AS e WHERE e.artifact_id = a.artifact_id)
ORDER BY a.artifact_id

-- name: new_runs -- with the run that writes the manifest, which has not ended
SELECT
    run_id, cause, CASE WHEN state = 'running' THEN 'succeeded' ELSE state END, started_at,
    coalesce(finished_at, merged_at), coalesce((report ->> 'embedded')::int, 0),
    coalesce((report ->> 'tokens')::bigint, 0), coalesce((report ->> 'cost_usd')::float8, 0)
FROM rowvec.runs
WHERE pipeline_id = %(pipeline_id)s AND state <> 'planned' AND NOT listed
ORDER BY run_id

-- name: all_runs -- those that something still comes from
SELECT
    run_id, cause, CASE WHEN state = 'running' THEN 'succeeded' ELSE state END, started_at,
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

-- name: list_artifacts -- the manifest that names them is in the store
UPDATE rowvec.artifacts SET listed = true
WHERE pipeline_id = %(pipeline_id)s AND (%(whole)s OR name = ANY (%(names)s)) AND NOT listed

-- name: list_runs
UPDATE rowvec.runs SET listed = true WHERE run_id = ANY (%(runs)s) AND NOT listed

-- name: told
UPDATE rowvec.pipelines SET journal_whole = false, journal_layout = %(layout)s WHERE pipeline_id = %(pipeline_id)s

-- name: state_table -- what the journal says of the vector table
CREATE TEMP TABLE journal_state ({columns}, PRIMARY KEY ({key}))

-- name: entry_table
CREATE TEMP TABLE journal_entry (LIKE journal_state)

-- name: copy_whole
COPY journal_state FROM STDIN (FORMAT csv)

-- name: copy_entry
COPY journal_entry FROM STDIN (FORMAT csv)

-- name: apply_entry
INSERT INTO journal_state SELECT * FROM journal_entry
ON CONFLICT ({key}) DO UPDATE SET {assignments}

-- name: empty_entry
TRUNCATE journal_entry

-- name: forget_deleted
DELETE FROM journal_state WHERE fingerprint IS NULL

-- name: analyze_state
ANALYZE journal_state

-- name: drop_state
DROP TABLE IF EXISTS journal_state, journal_entry
