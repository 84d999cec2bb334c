-- name: begin -- one snapshot for the answers of the index and the exact answers
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY

-- name: indifferent -- if all plans cost the same, the planner takes the index that it considers first: the newest
SELECT set_config(name, '0', true)
FROM unnest(ARRAY['seq_page_cost', 'random_page_cost', 'cpu_tuple_cost', 'cpu_index_tuple_cost', 'cpu_operator_cost'])
    AS name

-- name: pages -- the pages of the table itself, without TOAST
SELECT greatest(pg_relation_size({table}::regclass) / current_setting('block_size')::int, 1)

-- name: sample -- rows that serve as queries; it draws whole pages, so the rest of the table is not read
SELECT {key}, {pgvector}.{send}(t.embedding)
FROM {table} AS t TABLESAMPLE SYSTEM ({percent}) REPEATABLE ({seed})
WHERE t.embedding IS NOT NULL AND {pgvector}.{norm}(t.embedding) <> 0
ORDER BY hashtextextended({key_text}, {seed})
LIMIT {queries}

-- name: size -- the bytes that an exact pass reads
SELECT pg_table_size({table}::regclass)

-- name: vectors -- every vector in the binary format of its type
COPY (SELECT t.embedding::{pgvector}.vector FROM {table} AS t WHERE t.embedding IS NOT NULL) TO STDOUT (FORMAT BINARY)

-- name: sent -- every vector as bytes, for types whose values differ in length
COPY (SELECT {pgvector}.{send}(t.embedding) FROM {table} AS t WHERE t.embedding IS NOT NULL) TO STDOUT (FORMAT BINARY)
