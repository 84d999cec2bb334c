-- name: counts -- all checks in one pass over the vectors
SELECT {counts} FROM {table} AS t WHERE {scope}

-- name: count -- the failing rows of one check
count(*) FILTER (WHERE {condition})

-- name: rows -- the keys of the first failing rows, as text
SELECT {key} FROM {table} AS t WHERE {scope} AND {condition} ORDER BY {order} LIMIT {limit}

-- name: run -- rows that one run wrote
t.run_id = {run_id}

-- name: missing
t.embedding IS NULL

-- name: dimensions
{found} <> {wanted}

-- name: finite -- a norm is finite only if every component is
{norm} IN ('NaN', 'Infinity')

-- name: zero_norm
{norm} = 0

-- name: bits -- in both directions: bits without a vector are as wrong as a vector without bits
t.embedding_bits IS DISTINCT FROM {bits}

-- name: any_vector
SELECT 1 FROM {table} AS t WHERE t.embedding IS NOT NULL LIMIT 1
