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
RETURNING pipeline_id

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

-- name: find -- the pipeline's id
SELECT pipeline_id FROM rowvec.pipelines WHERE name = %(name)s

-- name: identity
SELECT identity FROM rowvec.pipelines WHERE pipeline_id = %(pipeline_id)s
