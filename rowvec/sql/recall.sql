-- name: begin -- one snapshot for the index's answers and the exact ones
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY

-- name: indifferent -- where all plans cost the same, the planner takes the index that it sees first: the youngest
SELECT set_config(name, '0', true)
FROM unnest(ARRAY['seq_page_cost', 'random_page_cost', 'cpu_tuple_cost', 'cpu_index_tuple_cost', 'cpu_operator_cost'])
    AS name

-- name: pages -- of the table itself, TOAST aside
SELECT greatest(pg_relation_size({table}::regclass) / current_setting('block_size')::int, 1)

-- name: sample -- rows as queries; whole pages are drawn, so the rest of the table is never read
SELECT {key}, {send}(t.embedding)
FROM {table} AS t TABLESAMPLE SYSTEM ({percent}) REPEATABLE ({seed})
WHERE t.embedding IS NOT NULL AND {norm}(t.embedding) <> 0
ORDER BY hashtextextended({key_text}, {seed})
LIMIT {queries}

-- name: size -- of what an exact pass reads, in bytes
SELECT pg_table_size({table}::regclass)

-- name: vectors -- every vector, as its own binary format
COPY (SELECT t.embedding::vector FROM {table} AS t WHERE t.embedding IS NOT NULL) TO STDOUT (FORMAT BINARY)

-- name: sent -- the same for vectors of any length
COPY (SELECT {send}(t.embedding) FROM {table} AS t WHERE t.embedding IS NOT NULL) TO STDOUT (FORMAT BINARY)
