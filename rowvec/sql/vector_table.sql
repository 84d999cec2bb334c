-- name: columns -- the columns of a table, and whether each is in its primary key; no rows if there is no such table
SELECT a.attname, format_type(a.atttypid, a.atttypmod), coalesce(a.attnum = ANY (i.indkey), false)
FROM pg_class AS c
JOIN pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_index AS i ON i.indrelid = c.oid AND i.indisprimary
WHERE n.nspname = %(schema)s AND c.relname = %(table)s
ORDER BY a.attnum

-- name: count
SELECT count(*) FROM {table}

-- name: schema_there -- checked first: a role that may only use a schema gets an error even from IF NOT EXISTS
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = %(schema)s)

-- name: create_schema
CREATE SCHEMA IF NOT EXISTS {schema}

-- name: create
CREATE TABLE {table} ({columns}, PRIMARY KEY ({key})) {split}
