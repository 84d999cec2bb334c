-- name: exists
SELECT EXISTS (
    SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = %(schema)s AND c.relname = %(table)s)

-- name: database -- the same for each way to reach one database, and for its standbys
SELECT concat_ws(' ',
    CASE WHEN has_function_privilege('pg_control_system()', 'EXECUTE')
         THEN (SELECT s.system_identifier::text FROM pg_control_system() AS s)
         ELSE pg_postmaster_start_time()::text END,
    d.oid)
FROM pg_database AS d WHERE d.datname = current_database()

-- name: plan_of_source -- the plan names each table that is read, also through views and as a partition
EXPLAIN (VERBOSE, FORMAT JSON) SELECT * FROM {relation} AS source
