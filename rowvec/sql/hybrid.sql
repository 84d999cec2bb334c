-- name: fused -- reciprocal rank fusion; a row in only one list counts, and rows of equal score are in key order
WITH by_vector AS (
    SELECT {key}, row_number() OVER (ORDER BY distance, {key}) AS place FROM ({nearest}) AS n
), by_words AS (
    SELECT {key}, row_number() OVER (ORDER BY weight DESC, {key}) AS place
    FROM (
        SELECT
            {key_t},
            ts_rank_cd(to_tsvector({language}::regconfig, t.content), websearch_to_tsquery({language}::regconfig, {words}))
                AS weight
        FROM {table} AS t
        WHERE to_tsvector({language}::regconfig, t.content) @@ websearch_to_tsquery({language}::regconfig, {words})
          AND t.embedding IS NOT NULL AND ({filter})
        ORDER BY weight DESC, {key_t}
        LIMIT {depth}
    ) AS w
), fused AS (
    SELECT
        {key},
        (coalesce(1.0 / ({rrf} + v.place), 0) + coalesce(1.0 / ({rrf} + w.place), 0))::float8 AS score,
        v.place AS vector_rank,
        w.place AS text_rank
    FROM by_vector AS v
    FULL JOIN by_words AS w USING ({key})
    ORDER BY score DESC, {key}
    LIMIT {k}
)
SELECT {columns}, {distance}::float8 AS distance, f.score, f.vector_rank, f.text_rank
FROM fused AS f
JOIN {table} AS t ON {same_row}
ORDER BY f.score DESC, {key_t}

-- name: languages
SELECT cfgname FROM pg_ts_config WHERE pg_ts_config_is_visible(oid) ORDER BY cfgname

-- name: text_indexes -- the full text indexes that rowvec built on a table and its partitions, known by their names
SELECT c.relname, i.indisvalid AND i.indisready
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid
JOIN pg_class AS t ON t.oid = i.indrelid
JOIN pg_namespace AS n ON n.oid = t.relnamespace
JOIN pg_am AS am ON am.oid = c.relam
LEFT JOIN pg_inherits AS p ON p.inhrelid = t.oid AND t.relispartition
LEFT JOIN pg_class AS whole ON whole.oid = p.inhparent
LEFT JOIN pg_namespace AS its ON its.oid = whole.relnamespace
WHERE (%(schema)s, %(table)s) IN ((n.nspname, t.relname), (its.nspname, whole.relname)) AND am.amname = 'gin' AND c.relname LIKE '%%\_rowvec\_text\_%%'
ORDER BY c.oid

-- name: create_index
CREATE INDEX CONCURRENTLY {name} ON {table} USING gin (
    pg_catalog.to_tsvector({language}::pg_catalog.regconfig, content)
)

-- name: function
CREATE OR REPLACE FUNCTION {name} ({arguments}) RETURNS TABLE ({results})
LANGUAGE plpgsql STABLE
-- One plan for all words and filters would be wrong for most.
SET plan_cache_mode = force_custom_plan
SET jit = off
SET search_path = pg_catalog, pg_temp
AS {body}

-- name: function_body
#variable_conflict use_column
DECLARE
    rowvec_set text[];
BEGIN
    {generations}
    IF $3 IS NULL OR $3 NOT BETWEEN 1 AND {most_k} THEN
        RAISE invalid_parameter_value USING MESSAGE = {limits_message};
    END IF;
    RETURN QUERY {statement};
END

-- name: function_nearest -- the search function also checks the filter
SELECT {columns}, t.distance FROM {search}($1, least({depth}, {most_k}), {oversampling}, $4) AS t
