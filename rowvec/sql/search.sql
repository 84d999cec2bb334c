-- name: settings -- for one transaction (or one call of the SQL function)
set_config('hnsw.ef_search', least(1000, {effort})::text, true),
set_config('hnsw.iterative_scan', 'relaxed_order', true),
set_config('hnsw.max_scan_tuples', greatest(20000, 4 * {candidates})::text, true),
set_config('hnsw.scan_mem_multiplier', '4', true),
set_config('ivfflat.probes', {probes}::text, true),
set_config('ivfflat.max_probes', {lists}::text, true),
set_config('ivfflat.iterative_scan', 'relaxed_order', true),
-- Vectors in TOAST make the table look small, and a scan of it cheap.
set_config('enable_seqscan', 'off', true),
set_config('jit', 'off', true)

-- name: exact_settings -- compiling costs more than it saves: distances are computed in C
set_config('jit', 'off', true)

-- name: exact -- no index on vectors can serve an ORDER BY of an expression over the distance
SELECT {columns}, {distance} AS distance
FROM {table} AS t
WHERE t.embedding IS NOT NULL AND ({filter})
ORDER BY ({distance}) + 0, {key}
LIMIT {k}

-- name: approximate -- a shortlist by the index, reranked by the exact distance
-- A shortlist that came back short (a narrow filter, a small table) may lack near rows: then the search is exact.
WITH shortlist AS MATERIALIZED (
    SELECT {columns}, {distance} AS distance
    FROM {table} AS t
    WHERE {filter}
    ORDER BY {nearness}
    LIMIT {shortlist}
), found AS (
    (SELECT * FROM shortlist WHERE (SELECT count(*) FROM shortlist) >= {shortlist})
    UNION ALL
    (
        SELECT {columns}, {distance} AS distance
        FROM {table} AS t
        WHERE (SELECT count(*) FROM shortlist) < {shortlist} AND t.embedding IS NOT NULL AND ({filter})
        ORDER BY ({distance}) + 0
        LIMIT {k}
    )
)
SELECT {columns}, distance FROM found AS t ORDER BY distance, {key} LIMIT {k}

-- name: explain
EXPLAIN (FORMAT JSON) {statement}

-- name: function_lock -- two installers at once would trip over each other's row in pg_proc
SELECT pg_advisory_xact_lock(%(space)s, hashtext(%(name)s))

-- name: vector_schema -- where pgvector's operators are; asking loads its library, which knows the settings' names
SELECT n.nspname
FROM pg_extension AS e
JOIN pg_namespace AS n ON n.oid = e.extnamespace
WHERE e.extname = 'vector' AND '[1]'::vector IS NOT NULL

-- name: our_functions -- those of this name that rowvec made, told by their comment
SELECT p.oid::regprocedure::text, p.oid
FROM pg_proc AS p
JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname = %(schema)s AND p.proname = %(name)s
  AND obj_description(p.oid, 'pg_proc') LIKE 'rowvec: %%'

-- name: function_oid
SELECT {signature}::regprocedure::oid

-- name: drop_function
DROP FUNCTION {signature}

-- name: comment_function
COMMENT ON FUNCTION {name} ({types}) IS {comment}

-- name: function
CREATE OR REPLACE FUNCTION {name} ({arguments}) RETURNS TABLE ({results})
LANGUAGE plpgsql STABLE
-- Without these the settings made inside would outlive the call.
SET hnsw.ef_search = 100
SET hnsw.iterative_scan = relaxed_order
SET hnsw.max_scan_tuples = 20000
SET hnsw.scan_mem_multiplier = 4
SET ivfflat.probes = 1
SET ivfflat.max_probes = 32768
SET ivfflat.iterative_scan = relaxed_order
SET enable_seqscan = {seqscan}
SET jit = off
-- A plan for any k and any filter would fit none.
SET plan_cache_mode = force_custom_plan
SET search_path = pg_catalog, {vector_schema}, pg_temp
AS {body}

-- name: function_body
#variable_conflict use_column
DECLARE
    rowvec_unknown text;
BEGIN
    IF $2 IS NULL OR $2 NOT BETWEEN 1 AND {most_k} OR $3 IS NULL OR $3 NOT BETWEEN 1 AND {most_oversampling} THEN
        RAISE invalid_parameter_value USING MESSAGE = {limits_message};
    END IF;
    SELECT f INTO rowvec_unknown FROM jsonb_object_keys(coalesce($4, '{{}}')) AS f WHERE f <> ALL ({filterable}) LIMIT 1;
    IF rowvec_unknown IS NOT NULL THEN
        RAISE undefined_column USING MESSAGE = {known} || rowvec_unknown;
    END IF;
    PERFORM {settings};
    RETURN QUERY {statement};
END

-- name: filter_equals -- folded away at planning time for columns that the filter does not name
(NOT coalesce($4 ? {name}, false) OR {column}::text IS NOT DISTINCT FROM $4 ->> {name})
