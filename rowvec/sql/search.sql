-- name: settings -- for one transaction (or one call of the SQL function)
set_config('hnsw.ef_search', least(1000, {effort})::text, true),
set_config('hnsw.iterative_scan', 'relaxed_order', true),
set_config('hnsw.max_scan_tuples', {most_visits}::text, true),
set_config('hnsw.scan_mem_multiplier', '4', true),
set_config('ivfflat.probes', {probes}::text, true),
set_config('ivfflat.max_probes', {lists}::text, true),
set_config('ivfflat.iterative_scan', 'relaxed_order', true),
-- The exact search that a short shortlist falls back to would be planned with workers, who start whether it runs or not:
-- at 100,000 x 3,072 that made 2 ms 45.
set_config('max_parallel_workers_per_gather', '0', true),
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

-- name: filtered -- few matches are found first and all ranked; else, or when more match than foreseen, as above
WITH matching AS MATERIALIZED (
    SELECT t.ctid AS place
    FROM {table} AS t
    WHERE {most_matches} > 0 AND t.embedding IS NOT NULL AND ({filter})
    LIMIT {most_matches} + 1
), shortlist AS MATERIALIZED (
    SELECT {columns}, {distance} AS distance
    FROM {table} AS t
    WHERE ({most_matches} = 0 OR (SELECT count(*) FROM matching) > {most_matches}) AND ({filter})
    ORDER BY {nearness}
    LIMIT {shortlist}
), found AS (
    (
        SELECT {columns}, {distance} AS distance
        FROM {table} AS t
        WHERE t.ctid = ANY (ARRAY(SELECT place FROM matching)) AND (SELECT count(*) FROM matching) <= {most_matches}
        ORDER BY ({distance}) + 0
        LIMIT {k}
    )
    UNION ALL
    (SELECT * FROM shortlist WHERE (SELECT count(*) FROM shortlist) >= {shortlist})
    UNION ALL
    (
        SELECT {columns}, {distance} AS distance
        FROM {table} AS t
        WHERE ({most_matches} = 0 OR (SELECT count(*) FROM matching) > {most_matches})
          AND (SELECT count(*) FROM shortlist) < {shortlist} AND t.embedding IS NOT NULL AND ({filter})
        ORDER BY ({distance}) + 0
        LIMIT {k}
    )
)
SELECT {columns}, distance FROM found AS t ORDER BY distance, {key} LIMIT {k}

-- name: estimate -- the planner's rows of the filter and of the table, and the cost of finding the former
-- Each array is a plan of its own, whose root says so whether or not workers share it.
EXPLAIN (FORMAT JSON) SELECT ARRAY(SELECT 1 FROM {table} AS t WHERE {filter}), ARRAY(SELECT 1 FROM {table} AS t)

-- name: filter_plan -- what the index must visit for a shortlist, and how many matches are sooner ranked one and all
-- With n matches among r rows an exact search costs find + n * row, one by the index shortlist * r / n * visit. They
-- cost the same where n * n * row + n * find = shortlist * r * visit.
SELECT
    CASE WHEN e.matching <= turn.matches THEN least(2 * turn.matches, 1000000)::int ELSE 0 END AS most_matches,
    least(ceil({shortlist} * e.rows / greatest(e.matching, turn.matches)), 1000000)::int AS visits,
    -- When filter and nearness exclude each other, as much is lost on the index as on the exact search after it.
    least(ceil((e.find + greatest(e.matching, turn.matches) * {row}) / {visit}), 1000000)::int AS most_visits
FROM (
    SELECT greatest({rows}, 1) AS rows, least(greatest({matching}, 1), {rows}) AS matching, {find} AS find
) AS e
CROSS JOIN LATERAL (
    SELECT (sqrt(e.find * e.find + 4 * {row} * {shortlist} * e.rows * {visit}) - e.find) / (2 * {row}) AS matches
) AS turn

-- name: filter_settings
SELECT f.most_matches, {settings} FROM ({plan}) AS f

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
SET max_parallel_workers_per_gather = {workers}
SET jit = off
-- Without a filter nothing in the plan depends on the arguments; with one the body asks for a plan of its own.
SET plan_cache_mode = force_generic_plan
SET search_path = pg_catalog, {vector_schema}, pg_temp
AS {body}

-- name: function_body
#variable_conflict use_column
DECLARE
    rowvec_unknown text;
    rowvec_set text[];
    rowvec_most_matches integer := 0;
    rowvec_visits integer := 0;
    rowvec_most_visits integer := 0;
BEGIN
    {generations}
    IF $2 IS NULL OR $2 NOT BETWEEN 1 AND {most_k} OR $3 IS NULL OR $3 NOT BETWEEN 1 AND {most_oversampling} THEN
        RAISE invalid_parameter_value USING MESSAGE = {limits_message};
    END IF;
    IF $4 IS NULL OR $4 = '{{}}' THEN
        -- An assignment, unlike PERFORM, is computed without starting a query.
        rowvec_set := ARRAY[{settings}];
        RETURN QUERY {statement};
        RETURN;
    END IF;
    SELECT f INTO rowvec_unknown FROM jsonb_object_keys($4) AS f WHERE f <> ALL ({filterable}) LIMIT 1;
    IF rowvec_unknown IS NOT NULL THEN
        RAISE undefined_column USING MESSAGE = {known} || rowvec_unknown;
    END IF;
    rowvec_set := ARRAY[set_config('plan_cache_mode', 'force_custom_plan', true)];
    {estimate}
    rowvec_set := ARRAY[{filtered_settings}];
    RETURN QUERY {filtered_statement};
END

-- name: function_generations -- in the body: a switch of generations may come between a call and what it reads. Once
-- the table is locked its name stays, and if it is another table's by now, another function has the name of this one.
PERFORM FROM {table} LIMIT 0;
    IF to_regclass({name}) IS DISTINCT FROM {oid}::oid AND coalesce(current_setting('rowvec.again', true), '') = '' THEN
        rowvec_set := ARRAY[set_config('rowvec.again', 'yes', true)];
        RETURN QUERY EXECUTE {again} USING $1, $2, $3, $4;
        rowvec_set := ARRAY[set_config('rowvec.again', '', true)];
        RETURN;
    END IF;
    {former}

-- name: function_former -- vectors of the length before are answered by the generation before, while it is kept
IF {asked} = {dimensions} AND to_regproc({function}) IS NOT NULL THEN
        RETURN QUERY EXECUTE {again} USING $1, $2, $3, $4;
        RETURN;
    END IF;

-- name: table_oid -- NULL if there is no such table
SELECT to_regclass(%(table)s)::oid::bigint

-- name: function_estimate -- in the body, for a search that could go through an index: from the columns' statistics, as
-- a function that changes nothing may not EXPLAIN. A column's share is that of the value, if it is a common one, else an
-- even part of what the common ones leave; the shares are multiplied.
SELECT f.most_matches, f.visits, f.most_visits
INTO rowvec_most_matches, rowvec_visits, rowvec_most_visits
FROM (
    SELECT
        greatest(c.reltuples, 1)::float8 AS rows,
        c.reltuples * exp(sum(ln(greatest(1e-9, CASE
            WHEN s.attname IS NULL THEN 0.005
            WHEN asked.value IS NULL THEN s.null_frac
            ELSE coalesce(
                s.most_common_freqs[array_position(s.most_common_vals::text::text[], asked.value)],
                greatest(0, 1 - s.null_frac - coalesce((SELECT sum(freq) FROM unnest(s.most_common_freqs) AS freq), 0))
                / greatest(
                    CASE WHEN s.n_distinct < 0 THEN -s.n_distinct * c.reltuples ELSE s.n_distinct END
                    - coalesce(cardinality(s.most_common_freqs), 0),
                    1
                )
            )
        END)))) AS matching,
        -- As the planner would cost it: every page and row, or those that an index on a named column leads to.
        CASE WHEN bool_or(EXISTS (
            SELECT FROM pg_index AS i
            JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
            WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND a.attname = asked.key
        )) THEN 0 ELSE c.relpages + c.reltuples * 0.0125 END AS cost
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    CROSS JOIN jsonb_each_text($4) AS asked (key, value)
    LEFT JOIN pg_stats AS s ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = asked.key
    WHERE n.nspname = {schema} AND c.relname = {name}
    GROUP BY c.oid, c.reltuples, c.relpages
) AS estimate
CROSS JOIN LATERAL ({plan}) AS f;

-- name: filter_equals -- folded away at planning time for columns that the filter does not name
(NOT coalesce($4 ? {name}, false) OR {column}::text IS NOT DISTINCT FROM $4 ->> {name})

-- name: filter_equals_typed -- in the column's own type, which an index on it and its statistics serve
(
    NOT coalesce($4 ? {name}, false)
    OR {column} = ($4 ->> {name})::{type}
    OR ($4 ->> {name} IS NULL AND {column} IS NULL)
)
