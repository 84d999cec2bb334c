-- name: dimensions_dense
{pgvector}.vector_dims({vector})

-- name: dimensions_sparse -- the first word of the binary format
('x' || encode(substring({pgvector}.sparsevec_send({vector}) FROM 1 FOR 4), 'hex'))::bit(32)::int

-- name: signs -- one bit per dimension
{pgvector}.binary_quantize({vector})::bit({width})

-- name: above_threshold -- which components are above a threshold once the vector is scaled to length 1
{pgvector}.binary_quantize(
    {pgvector}.l2_normalize({vector}::{pgvector}.vector)
    OPERATOR({pgvector}.-) array_fill({threshold}::real, ARRAY[{dimensions}])::{pgvector}.vector
)

-- name: several_bits -- the bits of all dimensions for the lowest threshold, then those for the next one
({codes})::bit({width})

-- name: nonzeros -- the mean over the first thousand rows, from the second word of the binary format
SELECT avg(('x' || encode(substring({pgvector}.sparsevec_send(t.embedding) FROM 5 FOR 4), 'hex'))::bit(32)::int)::float8
FROM (SELECT embedding FROM {table} WHERE embedding IS NOT NULL LIMIT 1000) AS t

-- name: widest -- the row with the most nonzeros
SELECT ('x' || encode(substring({pgvector}.sparsevec_send(t.embedding) FROM 5 FOR 4), 'hex'))::bit(32)::int, {key_json}
FROM {table} AS t
WHERE t.embedding IS NOT NULL
ORDER BY 1 DESC
LIMIT 1
