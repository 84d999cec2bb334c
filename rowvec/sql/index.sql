-- name: state -- the vector indexes of a table and of its partitions; no query uses one that is invalid or not ready
-- Such an index orders by a distance (amoppurpose o), whichever extension its access method is of.
SELECT
    am.amname,
    (
        SELECT e.extname::text
        FROM pg_depend AS d
        JOIN pg_extension AS e ON e.oid = d.refobjid
        WHERE d.classid = 'pg_am'::regclass AND d.objid = am.oid AND d.refclassid = 'pg_extension'::regclass
    ),
    c.relname,
    o.opcname,
    i.indisvalid AND i.indisready,
    pg_relation_size(c.oid),
    pg_get_indexdef(c.oid),
    coalesce(c.reloptions, '{{}}'),
    i.indpred IS NOT NULL,
    t.relname
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid
JOIN pg_class AS t ON t.oid = i.indrelid
JOIN pg_namespace AS n ON n.oid = t.relnamespace
JOIN pg_am AS am ON am.oid = c.relam
JOIN pg_opclass AS o ON o.oid = i.indclass[0]
LEFT JOIN pg_inherits AS p ON p.inhrelid = t.oid AND t.relispartition
LEFT JOIN pg_class AS whole ON whole.oid = p.inhparent
LEFT JOIN pg_namespace AS its ON its.oid = whole.relnamespace
WHERE (%(schema)s, %(table)s) IN ((n.nspname, t.relname), (its.nspname, whole.relname))
  AND o.opcintype IN (SELECT y.oid FROM pg_type AS y WHERE y.typname IN ('vector', 'halfvec', 'sparsevec', 'bit'))
  AND EXISTS (SELECT FROM pg_amop AS a WHERE a.amopfamily = o.opcfamily AND a.amoppurpose = 'o')
ORDER BY c.oid

-- name: names -- all names in the schema that the name of a new index could collide with
SELECT c.relname
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s

-- name: builds -- builds of indexes on this table by other backends
SELECT p.pid, p.phase, p.blocks_total, p.blocks_done, p.tuples_total, p.tuples_done
FROM pg_stat_progress_create_index AS p
JOIN pg_class AS t ON t.oid = p.relid
JOIN pg_namespace AS n ON n.oid = t.relnamespace
WHERE p.datname = current_database() AND n.nspname = %(schema)s AND t.relname = %(table)s AND p.pid <> %(mine)s

-- name: build_of -- the build of one backend, which builds one index at a time
SELECT p.pid, p.phase, p.blocks_total, p.blocks_done, p.tuples_total, p.tuples_done
FROM pg_stat_progress_create_index AS p
WHERE p.pid = %(pid)s

-- name: table_facts -- the estimated number of rows, and whether it is unknown; no row if there is no such table
SELECT greatest(c.reltuples, 0)::bigint, c.reltuples < 0
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND c.relkind = 'r'

-- name: count
SELECT count(*) FROM {table}

-- name: memory -- both settings in bytes
SELECT pg_size_bytes(current_setting('maintenance_work_mem')), pg_size_bytes(current_setting('shared_buffers'))

-- name: held -- bytes of the vector indexes of a table and of its partitions, and of the server's buffers
SELECT coalesce(sum(pg_relation_size(i.indexrelid)), 0)::bigint, pg_size_bytes(current_setting('shared_buffers'))
FROM pg_index AS i
JOIN pg_opclass AS o ON o.oid = i.indclass[0]
WHERE (
    i.indrelid = {table}::regclass
    OR i.indrelid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = {table}::regclass)
)
  AND o.opcintype IN (SELECT y.oid FROM pg_type AS y WHERE y.typname IN ('vector', 'halfvec', 'sparsevec', 'bit'))
  AND EXISTS (SELECT FROM pg_amop AS a WHERE a.amopfamily = o.opcfamily AND a.amoppurpose = 'o')

-- name: maintenance_work_mem
SELECT current_setting('maintenance_work_mem')

-- name: set
SELECT set_config(%(name)s, %(value)s, true)

-- name: workers
SELECT current_setting('max_parallel_workers')::int, current_setting('max_parallel_maintenance_workers')::int

-- name: create
CREATE INDEX {concurrently} {name} ON {table} USING {kind} ({column} {opclass}) {options}

-- name: operator_class -- the schema of an operator class; only a superuser can create one
SELECT n.nspname::text
FROM pg_opclass AS o
JOIN pg_am AS am ON am.oid = o.opcmethod
JOIN pg_namespace AS n ON n.oid = o.opcnamespace
WHERE am.amname = %(access_method)s AND o.opcname = %(name)s
ORDER BY o.oid
LIMIT 1

-- name: drop
DROP INDEX {concurrently} IF EXISTS {name}

-- name: live_and_dead -- live and dead rows by the statistics, which are lost in a crash
SELECT pg_stat_get_live_tuples(to_regclass(%(qualified)s)), pg_stat_get_dead_tuples(to_regclass(%(qualified)s))

-- name: vacuum -- waits for no lock, and takes no lock that blocks readers
VACUUM (SKIP_LOCKED, TRUNCATE false, INDEX_CLEANUP on, ANALYZE) {table}
