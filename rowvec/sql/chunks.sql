-- name: make -- the chunks of each row's content; rowvec_row, the content's hash, tells the contents of one row apart
CREATE TABLE IF NOT EXISTS {chunks} (
    {columns},
    rowvec_row bytea NOT NULL,
    chunk integer NOT NULL,
    content text NOT NULL,
    PRIMARY KEY ({key})
)

-- name: comment
COMMENT ON TABLE {chunks} IS 'Contents in chunks; rebuilt from the source if it is lost.'

-- name: drop
DROP TABLE IF EXISTS {chunks}

-- name: rows -- every chunk that must have a vector; a row whose present content is not split yet has none
SELECT {columns}, chunk, {metadata} content, NULL::text AS rowvec_vector, {fingerprint} AS fingerprint, metadata_hash
FROM (
    SELECT {row_columns}, c.chunk, {row_metadata} c.content, r.metadata_hash
    FROM ({whole}) AS r
    JOIN {chunks} AS c ON {same_row} AND c.rowvec_row = r.fingerprint
) AS split

-- name: forget -- chunks of rows that are gone, or have other content now
DELETE FROM {chunks} AS c
WHERE NOT EXISTS (SELECT FROM ({whole}) AS r WHERE {same_row} AND r.fingerprint = c.rowvec_row)

-- name: add -- another process may have split the same contents meanwhile
INSERT INTO {chunks} ({columns}, rowvec_row, chunk, content)
SELECT {typed}, rowvec_row, chunk, content
FROM unnest({arrays}, {hashes}::bytea[], {numbers}::int[], {contents}::text[])
    AS s ({columns}, rowvec_row, chunk, content)
ON CONFLICT DO NOTHING

-- name: analyze
ANALYZE {chunks}

-- name: count_lost -- vectors that a plan deletes because their row is gone, and not because a text became shorter
SELECT count(*) FROM {plan} AS p
WHERE p.rowvec_action = 'deleted' AND NOT EXISTS (SELECT FROM ({rows}) AS r WHERE {same_row})

-- name: unsplit -- rows whose present content is not split yet
SELECT {columns} FROM ({whole}) AS r
WHERE NOT EXISTS (SELECT FROM {chunks} AS c WHERE {same_row} AND c.rowvec_row = r.fingerprint)
