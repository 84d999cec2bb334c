-- name: own_path -- the schemas of the role's own path; written so that no schema of the path can change its meaning
SELECT pg_catalog.current_schemas(false), pg_catalog.date_part('epoch'::pg_catalog.text, pg_catalog.now())::pg_catalog.int8;
SET LOCAL search_path = pg_catalog

-- name: names -- schemas of the path in which nobody but this role and superusers may create; pgvector; types of extensions
SELECT
    (
        SELECT coalesce(array_agg(quote_ident(n.nspname) ORDER BY s.position), '{{}}')
        FROM unnest(%(path)s::name[]) WITH ORDINALITY AS s (name, position)
        JOIN pg_namespace AS n ON n.nspname = s.name
        WHERE n.nspname !~ '^pg_' AND NOT EXISTS (
            SELECT
            FROM (
                SELECT n.nspowner AS grantee
                UNION ALL
                SELECT a.grantee
                FROM aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) AS a
                WHERE a.privilege_type = 'CREATE'
            ) AS creator
            LEFT JOIN pg_roles AS r ON r.oid = CASE
                WHEN creator.grantee = 'pg_database_owner'::regrole
                THEN (SELECT d.datdba FROM pg_database AS d WHERE d.datname = current_database())
                ELSE creator.grantee
            END
            -- The grantee 0 is PUBLIC, and no role.
            WHERE r.oid IS NULL OR NOT (r.rolsuper OR r.rolname = current_user)
        )
    ),
    (
        SELECT quote_ident(n.nspname)
        FROM pg_extension AS e JOIN pg_namespace AS n ON n.oid = e.extnamespace
        WHERE e.extname = 'vector'
    ),
    (
        SELECT coalesce(jsonb_object_agg(one.name, one.schema), '{{}}')
        FROM (
            SELECT quote_ident(t.typname) AS name, min(quote_ident(n.nspname)) AS schema
            FROM pg_depend AS d
            JOIN pg_type AS t ON t.oid = d.objid
            JOIN pg_namespace AS n ON n.oid = t.typnamespace
            WHERE d.classid = 'pg_type'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
              AND n.nspname <> 'pg_catalog'
            GROUP BY t.typname
            HAVING count(DISTINCT n.oid) = 1
        ) AS one
    )

-- name: place -- what two sessions have in common that are on one database of one server
SELECT d.oid::bigint, pg_postmaster_start_time() FROM pg_database AS d WHERE d.datname = current_database()

-- name: scratch_tables -- those of one connection, and those that killed processes left a week ago
SELECT c.relname
FROM pg_class AS c
WHERE c.relnamespace = to_regnamespace('rowvec') AND c.relkind = 'r' AND c.relname ~ '^scratch_[0-9]+_[0-9a-f]{{8}}_'
  AND (
      starts_with(c.relname, 'scratch_' || {scratch} || '_')
      OR split_part(c.relname, '_', 2)::bigint < extract(epoch FROM now() - interval '7 days')
  )

-- name: mark_scratch -- what says later that the scratch tables of a connection still have their rows
CREATE UNLOGGED TABLE IF NOT EXISTS {marker} AS SELECT true AS there

-- name: scratch_is_there
SELECT there FROM {marker}

-- name: drop_scratch
DROP TABLE IF EXISTS {table}

-- name: keep_rows
CREATE UNLOGGED TABLE {table} AS {select}

-- name: in_order -- a sequential scan of a large table may begin in its middle
SET LOCAL enable_seqscan = off;
SET LOCAL synchronize_seqscans = off

-- name: kept_rows -- a page in the order in which the rows are stored
SELECT ctid::text, kept.* FROM {table} AS kept WHERE ctid > {last}::tid LIMIT {rows}
