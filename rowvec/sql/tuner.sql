-- name: lock -- one tuner a table: held by the session, so that a killed one lets go of it
SELECT pg_try_advisory_lock(%(space)s, hashtext(%(table)s))

-- name: unlock
SELECT pg_advisory_unlock(%(space)s, hashtext(%(table)s))

-- name: oid -- for a name that no other table's sample has
SELECT {table}::regclass::oid::bigint

-- name: drop
DROP TABLE IF EXISTS {sample}

-- name: create -- laid out and stored as the table itself, for what a search reads is part of what it costs
CREATE UNLOGGED TABLE {sample} (LIKE {table} INCLUDING STORAGE INCLUDING COMPRESSION)

-- name: add_bits -- that the table does not keep
ALTER TABLE {sample} ADD COLUMN embedding_bits bit({dimensions})
    GENERATED ALWAYS AS (binary_quantize(embedding)::bit({dimensions})) STORED

-- name: fill -- single rows, not pages: rows of one page are often alike
INSERT INTO {sample} ({columns})
SELECT {columns} FROM {table} TABLESAMPLE BERNOULLI ({percent}) REPEATABLE ({seed})
WHERE embedding IS NOT NULL
LIMIT {rows}

-- name: primary_key
ALTER TABLE {sample} ADD PRIMARY KEY ({key})

-- name: vacuum -- all rows visible, and statistics
VACUUM (ANALYZE) {sample}

-- name: store
INSERT INTO rowvec.tunings AS t
    (table_schema, table_name, layout, chosen, measured, skipped, rows, sampled_rows, queries, k, at_least, seconds)
VALUES (
    %(schema)s, %(table)s, %(layout)s, %(chosen)s, %(measured)s, %(skipped)s, %(rows)s, %(sampled)s, %(queries)s, %(k)s,
    %(at_least)s, %(seconds)s
)
ON CONFLICT (table_schema, table_name) DO UPDATE
SET layout = excluded.layout, chosen = excluded.chosen, measured = excluded.measured, skipped = excluded.skipped,
    rows = excluded.rows, sampled_rows = excluded.sampled_rows, queries = excluded.queries, k = excluded.k,
    at_least = excluded.at_least, seconds = excluded.seconds, tuned_at = now()

-- name: find -- of vectors like these: another model or precision is another table
SELECT chosen, rows, at_least, tuned_at FROM rowvec.tunings
WHERE table_schema = %(schema)s AND table_name = %(table)s AND layout = %(layout)s
