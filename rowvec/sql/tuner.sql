-- name: drop
DROP TABLE IF EXISTS {sample}

-- name: create -- stored in the same way as the table, because reading is part of the cost of a search
CREATE UNLOGGED TABLE {sample} (LIKE {table} INCLUDING STORAGE INCLUDING COMPRESSION)

-- name: fill -- draws single rows, not pages, because rows of one page are often similar
INSERT INTO {sample} ({columns})
SELECT {columns} FROM {table} TABLESAMPLE BERNOULLI ({percent}) REPEATABLE ({seed})
WHERE embedding IS NOT NULL
LIMIT {rows}

-- name: primary_key
ALTER TABLE {sample} ADD PRIMARY KEY ({key})

-- name: vacuum -- marks all rows as visible, and gathers statistics
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

-- name: find -- only for the same layout of vectors: results for another layout do not apply
SELECT chosen, rows, at_least, tuned_at FROM rowvec.tunings
WHERE table_schema = %(schema)s AND table_name = %(table)s AND layout = %(layout)s
