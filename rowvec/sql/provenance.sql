-- name: ours -- the view and the function of that name, whether rowvec made them, and their comments
-- The function is known by its comment or its body, and the view by its function: its comment may be the user's own.
SELECT 'function', obj_description(p.oid, 'pg_proc'),
    coalesce(obj_description(p.oid, 'pg_proc') LIKE {comment}, false) OR p.prosrc LIKE '%LEFT JOIN rowvec.pipelines%'
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname = {schema} AND p.proname = {name} AND p.pronargs = 0
UNION ALL
SELECT 'view', obj_description(c.oid, 'pg_class'), NULL
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = {schema} AND c.relname = {name}

-- name: lock
SELECT pg_advisory_xact_lock(%(space)s, hashtext(%(name)s))

-- name: drop_view
DROP VIEW IF EXISTS {name}

-- name: drop_function
DROP FUNCTION IF EXISTS {name} ()

-- name: function -- its text is bound only when it is called: the table can be dropped, and created again
CREATE FUNCTION {name} () RETURNS TABLE ({results}) LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS {body}

-- name: body -- a single SELECT, which the planner inlines: a query for one key then reads one key
SELECT
    {key}
    p.identity ->> 'provider',
    p.identity ->> 'model',
    (p.identity ->> 'dimensions')::integer,
    t.fingerprint,
    t.run_id,
    t.embedded_at,
    a.name,
    a.sha256,
    e.run_id,
    paid.started_at,
    e.cost_usd
FROM {table} AS t
LEFT JOIN rowvec.pipelines AS p ON p.table_schema = {schema} AND p.table_name = {name}
LEFT JOIN rowvec.embeddings AS e ON e.pipeline_id = p.pipeline_id AND e.fingerprint = t.fingerprint
LEFT JOIN rowvec.artifacts AS a ON a.artifact_id = e.artifact_id
LEFT JOIN rowvec.runs AS paid ON paid.run_id = e.run_id

-- name: view
CREATE VIEW {name} AS SELECT * FROM {name} ()

-- name: comment_view
COMMENT ON VIEW {name} IS {comment}

-- name: comment_function
COMMENT ON FUNCTION {name} () IS {comment}
