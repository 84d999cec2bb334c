-- name: by_list
PARTITION BY LIST ({columns})

-- name: by_hash
PARTITION BY HASH ({columns})

-- name: key -- how a table is split: l (list) or h (hash), by which columns, into how many partitions; no row if it is not
SELECT
    p.partstrat::text,
    ARRAY(
        SELECT a.attname::text
        FROM unnest(p.partattrs::int2[]) WITH ORDINALITY AS k (attnum, place)
        LEFT JOIN pg_attribute AS a ON a.attrelid = p.partrelid AND a.attnum = k.attnum
        ORDER BY k.place
    ),
    (SELECT count(*) FROM pg_inherits AS i WHERE i.inhparent = p.partrelid)
FROM pg_partitioned_table AS p
WHERE p.partrelid = to_regclass(%(table)s)

-- name: all -- the partitions of a table; of a list partition also its value, as the server writes it
-- A table that somebody moved to another schema leaves its partitions where they are.
SELECT
    n.nspname::text,
    c.relname::text,
    CASE
        WHEN bound.text LIKE 'FOR VALUES IN (''%%'
        THEN replace(substr(bound.text, 17, length(bound.text) - 18), '''''', '''')
        WHEN bound.text LIKE 'FOR VALUES IN (%%' THEN substr(bound.text, 16, length(bound.text) - 16)
    END,
    greatest(c.reltuples, 0)::bigint,
    coalesce(pg_stat_get_live_tuples(c.oid), 0),
    coalesce(pg_stat_get_dead_tuples(c.oid), 0),
    EXISTS (
        SELECT FROM pg_index AS x
        JOIN pg_opclass AS o ON o.oid = x.indclass[0]
        WHERE x.indrelid = c.oid
          AND o.opcintype IN (SELECT y.oid FROM pg_type AS y WHERE y.typname IN ('vector', 'halfvec', 'sparsevec', 'bit'))
          AND EXISTS (SELECT FROM pg_amop AS a WHERE a.amopfamily = o.opcfamily AND a.amoppurpose = 'o'))
FROM pg_inherits AS i
JOIN pg_class AS c ON c.oid = i.inhrelid
JOIN pg_namespace AS n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (SELECT pg_get_expr(c.relpartbound, c.oid) AS text) AS bound
WHERE i.inhparent = to_regclass(%(table)s)
ORDER BY c.relname

-- name: new_values -- values of rows for which there is no partition yet
SELECT DISTINCT s.{column}::{type}::text FROM {rows} AS s WHERE {which} AND s.{column}::{type}::text <> ALL ({known})
LIMIT {most}

-- name: planned -- rows of a plan that will have a vector
s.rowvec_batch IS NOT NULL

-- name: most -- how many partitions the server's table of locks has room for: a statement on all of them takes six each
SELECT
    current_setting('max_locks_per_transaction')::int
    * (current_setting('max_connections')::int + current_setting('max_prepared_transactions')::int) / 6

-- name: create -- as a table of its own at first: to create it as a partition would block all readers of the table
CREATE TABLE {partition} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE INCLUDING COMPRESSION)

-- name: hide -- a direct query of a partition is not subject to the policies of the table, so it shows others nothing
ALTER TABLE {partition} ENABLE ROW LEVEL SECURITY

-- name: revocations -- statements that take from others what default privileges gave them on new tables
SELECT DISTINCT format('REVOKE ALL ON %%I.%%I FROM %%s CASCADE', n.nspname, c.relname,
    CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
CROSS JOIN LATERAL aclexplode(c.relacl) AS a
WHERE n.nspname = %(schema)s AND c.relname = ANY (%(names)s) AND a.grantee <> c.relowner

-- name: attach_value
ALTER TABLE {table} ATTACH PARTITION {partition} FOR VALUES IN ({value}::{type})

-- name: attach_remainder
ALTER TABLE {table} ATTACH PARTITION {partition} FOR VALUES WITH (MODULUS {modulus}, REMAINDER {remainder})

-- name: fill -- a first load: from staging, which has all columns in their own types
INSERT INTO {table} ({columns}) SELECT {columns} FROM {staging}

-- name: lock -- all readers queue behind a pending ACCESS EXCLUSIVE lock, so the timeout is short
SET LOCAL lock_timeout = '300ms';
LOCK TABLE ONLY {table} IN ACCESS EXCLUSIVE MODE

-- name: has_rows
SELECT EXISTS (SELECT FROM {partition})

-- name: drop
DROP TABLE {partition}

-- name: rows -- the number of rows of each partition that has any
SELECT c.relname::text, found.rows
FROM (SELECT t.tableoid AS oid, count(*) AS rows FROM {table} AS t GROUP BY t.tableoid) AS found
JOIN pg_class AS c USING (oid)

-- name: analyze -- autovacuum looks after each partition, and never after the table as a whole
ANALYZE {tables}

-- name: rows_at_analyze -- of the table as a whole
SELECT greatest(c.reltuples, 0)::bigint FROM pg_class AS c WHERE c.oid = to_regclass(%(table)s)
