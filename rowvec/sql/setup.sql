-- name: server -- its version, and whether it takes writes
SELECT
    current_setting('server_version'), current_setting('server_version_num')::int,
    current_setting('transaction_read_only')::boolean

-- name: role -- who connects, and what the database allows
SELECT
    quote_ident(current_user), quote_ident(d.datname),
    has_database_privilege(d.oid, 'CREATE'), has_database_privilege(d.oid, 'TEMPORARY'),
    r.rolconnlimit, d.datconnlimit
FROM pg_database AS d, pg_roles AS r
WHERE d.datname = current_database() AND r.rolname = current_user

-- name: pgvector -- installed version and schema, and what CREATE EXTENSION would install
SELECT e.extversion, quote_ident(n.nspname), has_schema_privilege(n.oid, 'USAGE'), a.default_version
FROM (VALUES ('vector'::name)) AS wanted (name)
LEFT JOIN pg_available_extensions AS a USING (name)
LEFT JOIN pg_extension AS e ON e.extname = wanted.name
LEFT JOIN pg_namespace AS n ON n.oid = e.extnamespace

-- name: may_install_pgvector -- a trusted extension needs CREATE on the database, any other one a superuser
SELECT coalesce(bool_or(v.trusted), false), bool_or(r.rolsuper)
FROM pg_roles AS r LEFT JOIN pg_available_extension_versions AS v ON v.name = 'vector'
WHERE r.rolname = current_user

-- name: schema -- what the role may do in it; no row if there is no such schema
SELECT has_schema_privilege(n.oid, 'USAGE'), has_schema_privilege(n.oid, 'CREATE')
FROM pg_namespace AS n WHERE n.nspname = {schema}

-- name: not_ours -- tables in a schema that rowvec writes and changes, and that do not belong to this role
SELECT quote_ident(n.nspname) || '.' || quote_ident(c.relname)
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = {schema} AND ({table}::name IS NULL OR c.relname = {table}::name) AND c.relkind IN ('r', 'p')
  AND NOT pg_has_role(current_user, c.relowner, 'USAGE')
ORDER BY 1

-- name: relation -- the source's table: may the role use its schema, which columns has it, and which may the role read
SELECT
    has_schema_privilege(n.oid, 'USAGE'), c.reltuples::float8,
    array_agg(a.attname::text ORDER BY a.attnum) FILTER (WHERE a.attnum > 0 AND NOT a.attisdropped),
    array_agg(a.attname::text ORDER BY a.attnum) FILTER (
        WHERE a.attnum > 0 AND NOT a.attisdropped AND NOT has_column_privilege(c.oid, a.attnum, 'SELECT')
    )
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE n.nspname = {schema} AND c.relname = {table} AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
GROUP BY n.oid, c.oid, c.reltuples

-- name: settings -- bytes, connections, and how many of them are taken
SELECT
    pg_size_bytes(current_setting('shared_buffers')), current_setting('max_connections')::int,
    current_setting('superuser_reserved_connections')::int,
    (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')

-- name: one_key -- of a row that has something to embed
SELECT {key} FROM {relation} AS source WHERE {something} AND {whole_key} LIMIT 1

-- name: one_row -- the row of one key, as a query that a pipeline file may have
SELECT * FROM {relation} AS source WHERE {is_key}

-- name: find_itself -- by the search function that the index stage has installed
SELECT count(*) FROM {function}((SELECT embedding FROM {table} LIMIT 1), 1)

-- name: forget -- everything that the ledger has of a scratch pipeline, whose table and artifacts are gone
DELETE FROM rowvec.job_texts WHERE pipeline_id = {pipeline_id};
DELETE FROM rowvec.jobs WHERE pipeline_id = {pipeline_id};
DELETE FROM rowvec.answers WHERE pipeline_id = {pipeline_id};
DELETE FROM rowvec.rejects WHERE pipeline_id = {pipeline_id};
DELETE FROM rowvec.artifacts WHERE pipeline_id = {pipeline_id};
DELETE FROM rowvec.runs WHERE pipeline_id = {pipeline_id};
DELETE FROM rowvec.index_builds WHERE table_schema = {schema} AND table_name = {table};
DELETE FROM rowvec.images WHERE family = {name};
DELETE FROM rowvec.spending WHERE family = {name};
DELETE FROM rowvec.stores WHERE family = {name};
DELETE FROM rowvec.run_leases WHERE pipeline_id = {pipeline_id};
DELETE FROM rowvec.lease_renewals WHERE pipeline_id = {pipeline_id};
DELETE FROM rowvec.pipelines WHERE pipeline_id = {pipeline_id}

-- name: columns -- name, what kind of values it has, type, and the mean width of a value if the table was analyzed
SELECT
    a.attname::text,
    CASE
        WHEN t.typcategory = 'S' AND t.typname NOT IN ('name', 'char') THEN 'text'
        WHEN t.typcategory IN ('B', 'D', 'E', 'I', 'N', 'T') OR t.typname = 'uuid' THEN 'scalar'
        ELSE 'other'
    END,
    format_type(a.atttypid, a.atttypmod),
    s.avg_width::float8
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_stats AS s ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = a.attname
WHERE n.nspname = {schema} AND c.relname = {table} AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
ORDER BY a.attnum

-- name: keys -- the primary key, else the unique index with the fewest columns, of which none may be NULL
SELECT i.indisprimary, array_agg(a.attname::text ORDER BY k.position)
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
CROSS JOIN LATERAL unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS k (number, position)
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = k.number
WHERE n.nspname = {schema} AND c.relname = {table}
  AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
GROUP BY i.indexrelid, i.indisprimary
HAVING bool_and(a.attnotnull)
ORDER BY i.indisprimary DESC, count(*), i.indexrelid
LIMIT 1

-- name: lengths -- of the texts in the first rows
SELECT {lengths} FROM (SELECT * FROM {table} LIMIT {rows}) AS sampled

-- name: insert_ms -- what the last run measured, if its index did not fit into the server's buffers
SELECT (c ->> 'value')::double precision
FROM rowvec.pipelines AS p JOIN rowvec.runs AS r USING (pipeline_id), jsonb_array_elements(r.checks) AS c
WHERE p.name = %(pipeline)s AND c ->> 'name' = %(check)s
ORDER BY r.run_id DESC LIMIT 1
