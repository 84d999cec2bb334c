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

-- name: hashed -- the rows with the hashes of their whole contents, each hashed once
-- Without the fence, the planner takes sha256 for as cheap as an addition and hashes a content once per chunk.
WITH hashed AS MATERIALIZED (
    SELECT {columns}, {metadata} fingerprint, metadata_hash FROM ({whole}) AS whole WHERE {among}
)

-- name: among -- rows of which a chunk has changed
({columns}) IN (SELECT {columns} FROM diff WHERE rowvec_action <> 'deleted')

-- name: rows -- every chunk that must have a vector; a row whose present content is not split yet has none
SELECT {columns}, chunk, {metadata} content, NULL::text AS rowvec_vector, {fingerprint} AS fingerprint, metadata_hash
FROM (
    {hashed}
    SELECT {row_columns}, c.chunk, {row_metadata} c.content, r.metadata_hash
    FROM hashed AS r
    JOIN {chunks} AS c ON {same_row} AND c.rowvec_row = r.fingerprint
) AS split

-- name: forget -- chunks of rows that are gone, or have other content now
{hashed}
DELETE FROM {chunks} AS c
WHERE NOT EXISTS (SELECT FROM hashed AS r WHERE {same_row} AND r.fingerprint = c.rowvec_row)

-- name: add -- another process may have split the same contents meanwhile
INSERT INTO {chunks} ({columns}, rowvec_row, chunk, content)
SELECT {typed}, rowvec_row, chunk, content
FROM unnest({arrays}, {hashes}::bytea[], {numbers}::int[], {contents}::text[])
    AS s ({columns}, rowvec_row, chunk, content)
ON CONFLICT DO NOTHING

-- name: analyze
ANALYZE {chunks}

-- name: count_lost -- vectors that a plan deletes because their row is gone, and not because a text became shorter
-- Grouped by row, because the search for a row reads its content, to see whether it is blank.
SELECT coalesce(sum(p.deleted), 0)::bigint
FROM (SELECT {columns}, count(*) AS deleted FROM {plan} WHERE rowvec_action = 'deleted' GROUP BY {columns}) AS p
WHERE NOT EXISTS (SELECT FROM ({rows}) AS r WHERE {same_row})

-- name: unsplit -- rows whose present content is not split yet
{hashed}
SELECT {columns} FROM hashed AS r
WHERE NOT EXISTS (SELECT FROM {chunks} AS c WHERE {same_row} AND c.rowvec_row = r.fingerprint)

-- name: unsplit_with_room -- without the rows that the extract has rejected, because the table has no room for them
SELECT {columns} FROM ({unsplit}) AS r
WHERE NOT EXISTS (
    SELECT FROM rowvec.rejects AS known
    WHERE known.pipeline_id = {pipeline_id} AND known.reason = 'unreadable' AND known.key = {key_json})

-- name: unsplit_contents
SELECT {texts} FROM ({whole}) AS r WHERE ({columns}) IN ({unsplit})
