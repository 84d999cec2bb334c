-- name: known -- a type by the name that format_type gave it: its name here, and whether only trusted functions belong
-- to it. A domain runs its checks; arrays, ranges and composite types may hold domains. A name without a schema may have
-- been written by a session with another search path, so it is looked for in all schemas.
SELECT
    pg_catalog.format_type(t.oid, NULL::pg_catalog.int4),
    t.typtype = 'e'::"char" OR t.typtype = 'b'::"char" AND t.typcategory <> 'A'::"char"
        OR o.rolsuper OR o.rolname = CURRENT_USER
FROM (SELECT pg_catalog.parse_ident({name}::pg_catalog.text) AS parts) AS named
JOIN pg_catalog.pg_type AS t ON t.typname = parts[pg_catalog.cardinality(parts)]::pg_catalog.name
JOIN pg_catalog.pg_namespace AS n ON n.oid = t.typnamespace
JOIN pg_catalog.pg_roles AS o ON o.oid = t.typowner
LEFT JOIN pg_catalog.pg_class AS c ON c.oid = t.typrelid
WHERE t.typisdefined AND t.typtype <> 'p'::"char" AND (c.oid IS NULL OR c.relkind = 'c'::"char")
  AND n.nspname NOT LIKE 'pg\_temp%'::pg_catalog.text AND n.nspname NOT LIKE 'pg\_toast%'::pg_catalog.text
  AND CASE
      WHEN pg_catalog.cardinality(parts) = 2 THEN n.nspname = parts[1]::pg_catalog.name
      ELSE n.nspname = 'pg_catalog'::pg_catalog.name OR NOT EXISTS (
          SELECT FROM pg_catalog.pg_type AS own
          WHERE own.typname = t.typname AND own.typnamespace = 'pg_catalog'::pg_catalog.regnamespace)
  END
