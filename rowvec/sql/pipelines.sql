-- name: register -- the pipeline's row, created if it is missing; its table and its embedder may have changed
-- A name with a dot is the name of a generation that is not live.
INSERT INTO rowvec.pipelines AS p (name, family, generation, state, table_schema, table_name, identity, settings)
VALUES (
    %(name)s,
    split_part(%(name)s, '.', 1),
    coalesce(nullif(split_part(%(name)s, '.', 2), '')::int, 1),
    CASE WHEN %(name)s LIKE '%%.%%' THEN 'building' ELSE 'live' END,
    %(schema)s, %(table)s, %(identity)s, %(settings)s
)
ON CONFLICT (name) DO UPDATE
SET table_schema = excluded.table_schema, table_name = excluded.table_name, identity = excluded.identity,
    settings = coalesce(p.settings, excluded.settings)
-- No row: the name belongs to another table.
WHERE (p.table_schema, p.table_name) = (excluded.table_schema, excluded.table_name)
   OR (to_regclass(format('%%I.%%I', p.table_schema, p.table_name)) IS NULL
       AND NOT EXISTS (SELECT FROM rowvec.artifacts AS a WHERE a.pipeline_id = ANY (rowvec.generations(p.pipeline_id))))
RETURNING pipeline_id

-- name: as_registered -- the pipeline, if `register` and its checks would find nothing to change, and a table of vectors
SELECT p.pipeline_id
FROM rowvec.pipelines AS p
JOIN pg_class AS c ON c.oid = to_regclass(format('%%I.%%I', p.table_schema, p.table_name))
WHERE p.name = %(name)s AND p.table_schema = %(schema)s AND p.table_name = %(table)s AND p.state <> 'dropped'
  AND p.identity = %(identity)s AND (p.settings IS NOT NULL OR %(settings)s::jsonb IS NULL)
  AND c.relkind IN ('r', 'p') AND EXISTS (SELECT FROM pg_attribute AS a
      WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attname = ANY (%(columns)s))

-- name: keep_settings -- only once the vector table is known to have their layout
UPDATE rowvec.pipelines SET settings = %(settings)s WHERE pipeline_id = %(pipeline_id)s

-- name: registered -- the embedder of the vector table's vectors, if the pipeline's table exists
SELECT identity FROM rowvec.pipelines
WHERE name = %(name)s AND table_schema = %(schema)s AND table_name = %(table)s
  AND to_regclass(%(regclass)s) IS NOT NULL

-- name: readable -- whether the ledger has a column and this role may read it; a role that only searches may not
SELECT EXISTS (
    SELECT FROM pg_attribute AS a
    JOIN pg_class AS c ON c.oid = a.attrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'rowvec' AND c.relname = %(table)s AND a.attname = %(column)s
      AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))

-- name: find -- the pipeline's id and its table
SELECT pipeline_id, table_schema, table_name FROM rowvec.pipelines WHERE name = %(name)s

-- name: owned -- the table that a name belongs to; no row if nobody would lose by a change: no table, nothing paid for
SELECT p.table_schema, p.table_name
FROM rowvec.pipelines AS p
WHERE p.name = %(name)s
  AND (to_regclass(format('%%I.%%I', p.table_schema, p.table_name)) IS NOT NULL
       OR EXISTS (SELECT FROM rowvec.artifacts AS a WHERE a.pipeline_id = ANY (rowvec.generations(p.pipeline_id))))

-- name: owner -- the pipeline that a table belongs to
SELECT name FROM rowvec.pipelines WHERE table_schema = %(schema)s AND table_name = %(table)s AND state <> 'dropped'

-- name: has_fingerprints -- whether rows have the fingerprint of their own content
SELECT EXISTS (
    SELECT FROM (SELECT fingerprint, content FROM {table} LIMIT 1000) AS t
    WHERE t.fingerprint::text = sha256({identity}::bytea || convert_to(t.content::text, 'UTF8'))::text)

-- name: relation -- what has the name of the vector table, with its columns; no row if nothing has
SELECT c.relkind::text, array_agg(a.attname::text)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = %(schema)s AND c.relname = %(table)s
GROUP BY c.oid, c.relkind

-- name: identity
SELECT identity FROM rowvec.pipelines WHERE pipeline_id = %(pipeline_id)s

-- name: is_building
SELECT state = 'building' FROM rowvec.pipelines WHERE pipeline_id = %(pipeline_id)s
