-- name: settings -- for one transaction (or one call of the SQL function)
{of_index}
-- The exact search for when the shortlist is too short would be planned with parallel workers, which start whether it
-- runs or not: at 100,000 x 3,072 a search then took 45 ms in place of 2.
set_config('max_parallel_workers_per_gather', '0', true),
-- Vectors in TOAST make the table look small to the planner, and a scan of it cheap.
set_config('enable_seqscan', 'off', true),
set_config('jit', 'off', true)

-- name: set_one -- a setting of the index's kind
set_config({name}, {value}, true),

-- name: exact_settings -- compiling costs more than it saves, because distances are computed in C
set_config('jit', 'off', true)

-- name: exact -- ORDER BY has an expression over the distance, which no index on vectors can serve
SELECT {columns}, {distance} AS distance
FROM {table} AS t
WHERE t.embedding IS NOT NULL AND ({filter})
ORDER BY ({distance}) + 0, {key}
LIMIT {k}

-- name: neighbours -- the chunks around one chunk of a row
SELECT t.chunk, t.content FROM {table} AS t
WHERE {same} AND t.chunk BETWEEN %s::int4 AND %s::int4 AND t.chunk <> %s::int4
ORDER BY t.chunk

-- name: approximate -- a shortlist by the index, reranked by the exact distance
-- A shortlist with too few rows (a narrow filter, a small table) may lack near rows: then the search is exact.
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

-- name: filtered -- if few rows match, they are found first and all ranked; if more match than expected, as above
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
          AND ({at_place})
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

-- name: everywhere -- a place is a row in one table only; among partitions the filter tells which one
true

-- name: estimate -- the planner's rows that pass the filter, its rows of the table, and the cost of finding the former
-- Each array is a plan of its own, whose root has the numbers with and without parallel workers.
EXPLAIN (FORMAT JSON) SELECT ARRAY(SELECT 1 FROM {table} AS t WHERE {filter}), ARRAY(SELECT 1 FROM {table} AS t)

-- name: filter_plan -- what the index must visit for a shortlist, and up to how many matches an exact search is cheaper
-- With n matches among r rows an exact search costs find + n * row, one by the index shortlist * r / n * visit. They
-- cost the same if n * n * row + n * find = shortlist * r * visit.
SELECT
    CASE WHEN e.matching <= turn.matches THEN least(2 * turn.matches, 1000000)::int ELSE 0 END AS most_matches,
    least(ceil({shortlist} * e.rows / greatest(e.matching, turn.matches)), 1000000)::int AS visits,
    -- If no near row passes the filter, the index costs at most as much as the exact search after it.
    least(ceil((e.find + greatest(e.matching, turn.matches) * {row}) / {visit}), 1000000)::int AS most_visits
FROM (
    SELECT greatest({rows}, 1) AS rows, least(greatest({matching}, 1), {rows}) AS matching, {find} AS find
) AS e
CROSS JOIN LATERAL (
    SELECT (sqrt(e.find * e.find + 4 * {row} * {shortlist} * e.rows * {visit}) - e.find) / (2 * {row}) AS matches
) AS turn

-- name: rows_of_partitions -- the rows of those partitions that the plan of a filter reads
SELECT sum(greatest(c.reltuples, 0))::float8
FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid
WHERE i.inhparent = {table}::regclass AND c.relname = ANY ({names})

-- name: filter_settings
SELECT f.most_matches, {settings} FROM ({plan}) AS f

-- name: type_number -- of the vectors' type in this database
SELECT pg_typeof(NULL::{type})::oid

-- name: explain
EXPLAIN (FORMAT JSON) {statement}

-- name: function_lock -- two processes that replace a function at once would fail on each other's row in pg_proc
SELECT pg_advisory_xact_lock(%(space)s, hashtext(%(name)s))

-- name: load_library -- of an access method, which defines the settings that the function makes
SELECT amvalidate(o.oid)
FROM pg_opclass AS o JOIN pg_am AS am ON am.oid = o.opcmethod
WHERE am.amname = %(access_method)s
LIMIT 1

-- name: our_functions -- functions of this name that rowvec made, known by their comment or, if that was changed, body
SELECT p.oid::regprocedure::text, p.oid, obj_description(p.oid, 'pg_proc'), p.prosrc
FROM pg_proc AS p
JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname = %(schema)s AND p.proname = %(name)s
  AND (obj_description(p.oid, 'pg_proc') LIKE 'rowvec: %%' OR p.prosrc LIKE '%%rowvec\_set text[]%%')

-- name: comment_again -- of the user's own
COMMENT ON FUNCTION {signature} IS {comment}

-- name: function_oid
SELECT {signature}::regprocedure::oid

-- name: drop_function
DROP FUNCTION {signature}

-- name: comment_function
COMMENT ON FUNCTION {name} ({types}) IS {comment}

-- name: function
CREATE OR REPLACE FUNCTION {name} ({arguments}) RETURNS TABLE ({results})
LANGUAGE plpgsql STABLE
-- Without these the settings that the body makes would outlive the call.
{of_index}
SET enable_seqscan = {seqscan}
SET max_parallel_workers_per_gather = {workers}
SET jit = off
-- Without a filter no plan depends on the arguments; with a filter the body turns on custom plans.
SET plan_cache_mode = force_generic_plan
SET search_path = pg_catalog, pg_temp
AS {body}

-- name: restored -- after the call; the value that it begins with does not matter
SET {name} FROM CURRENT

-- name: function_body
#variable_conflict use_column
DECLARE
    rowvec_unknown text;
    rowvec_set text[];
    rowvec_partition oid;
    rowvec_most_matches integer := 0;
    rowvec_visits integer := 0;
    rowvec_most_visits integer := 0;
BEGIN
    {generations}
    IF $2 IS NULL OR $2 NOT BETWEEN 1 AND {most_k} OR $3 IS NULL OR $3 NOT BETWEEN 1 AND {most_oversampling} THEN
        RAISE invalid_parameter_value USING MESSAGE = {limits_message};
    END IF;
    IF $4 IS NULL OR $4 = '{{}}' THEN
        -- An assignment, unlike PERFORM, starts no query.
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

-- name: function_generations -- in the body: generations may be switched between the call and the reading. Once the
-- table is locked, its name stays. If another table has the name by then, the call goes to that table's function.
PERFORM FROM {table} {nothing};
    IF to_regclass({name}) IS DISTINCT FROM {oid}::oid AND coalesce(current_setting('rowvec.again', true), '') = '' THEN
        rowvec_set := ARRAY[set_config('rowvec.again', 'yes', true)];
        RETURN QUERY EXECUTE {again} USING $1, $2, $3, $4;
        rowvec_set := ARRAY[set_config('rowvec.again', '', true)];
        RETURN;
    END IF;
    {former}

-- name: function_former -- a query of the former generation's dimensions goes to that generation, while it is kept
IF {asked} = {dimensions} AND to_regproc({function}) IS NOT NULL THEN
        RETURN QUERY EXECUTE {again} USING $1, $2, $3, $4;
        RETURN;
    END IF;

-- name: no_row -- of a table, which the statement locks all the same
LIMIT 0

-- name: no_partition -- likewise; no partition can have such a row, so none is opened or locked
WHERE {column} = NULL

-- name: table_oid -- NULL if there is no such table
SELECT to_regclass(%(table)s)::oid::bigint

-- name: function_partition -- in the body: the partition of a filter that names all columns the table is split by
IF $4 ?& {columns} THEN
        SELECT t.tableoid INTO rowvec_partition FROM {table} AS t WHERE {equal} LIMIT 1;
    END IF;

-- name: of_partition -- among the rows of the partition, whose number the last ANALYZE found
coalesce((SELECT p.reltuples FROM pg_class AS p WHERE p.oid = rowvec_partition), c.reltuples)

-- name: of_table
c.reltuples

-- name: all_of_partition -- a list partition has one value of its column, so all its rows have the value of the filter
rowvec_partition IS NOT NULL AND asked.key = ANY ({columns})

-- name: no_column
false

-- name: function_estimate -- in the body, for a search that could go through an index: from the columns' statistics,
-- because a STABLE function may not EXPLAIN. A column's share of rows is that of the value, if it is a common one, else
-- an even part of what the common values leave; the shares are multiplied.
SELECT f.most_matches, f.visits, f.most_visits
INTO rowvec_most_matches, rowvec_visits, rowvec_most_visits
FROM (
    SELECT
        greatest({among}, 1)::float8 AS rows,
        {matching_among} * exp(sum(ln(greatest(1e-9, CASE
            WHEN {certain} THEN 1
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
        -- The planner's cost of reading every page and row; 0 if an index on a named column finds the rows.
        CASE WHEN bool_or(EXISTS (
            SELECT FROM pg_index AS i
            JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
            WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND a.attname = asked.key
        )) THEN 0 ELSE greatest(c.relpages, 0) + {among} * 0.0125 END AS cost
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    CROSS JOIN jsonb_each_text($4) AS asked (key, value)
    LEFT JOIN pg_stats AS s ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = asked.key
    WHERE n.nspname = {schema} AND c.relname = {name}
    GROUP BY c.oid, c.reltuples, c.relpages
) AS estimate
CROSS JOIN LATERAL ({plan}) AS f;

-- name: filter_equals -- the planner folds this away for columns that the filter does not name
(NOT coalesce($4 ? {name}, false) OR {column}::text IS NOT DISTINCT FROM $4 ->> {name})

-- name: filter_equals_typed -- compared in the column's own type, so that its index and statistics serve
(
    NOT coalesce($4 ? {name}, false)
    OR {column} = ($4 ->> {name})::{type}
    OR ($4 ->> {name} IS NULL AND {column} IS NULL)
)
