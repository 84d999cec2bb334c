-- name: of_family -- all generations of a pipeline, newest first
SELECT pipeline_id, name, generation, state, table_schema, table_name, identity, settings, created_at, switched_at
FROM rowvec.pipelines
WHERE family = %(family)s
ORDER BY generation DESC

-- name: ledger_exists -- a search function may be installed on a table that no ledger knows
SELECT to_regclass('rowvec.pipelines') IS NOT NULL

-- name: before -- the generation that was read before this table, if its table is kept
SELECT old.table_name, (old.identity ->> 'dimensions')::int
FROM rowvec.pipelines AS live
JOIN rowvec.pipelines AS old USING (family)
WHERE live.table_schema = %(schema)s AND live.table_name = %(table)s AND live.state = 'live' AND old.state = 'retired'
ORDER BY old.switched_at DESC
LIMIT 1
