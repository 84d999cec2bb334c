-- name: there -- whether Citus is installed: its functions are in pg_catalog, so any search path has them
SELECT EXISTS (SELECT FROM pg_proc WHERE proname = 'create_distributed_table' AND pg_function_is_visible(oid))

-- name: distribute
SELECT create_distributed_table(%(table)s::regclass, %(column)s)
