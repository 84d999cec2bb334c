-- name: rows -- every row that must have a vector, rendered and hashed by the source's own database
SELECT {columns}, content, rowvec_vector, {fingerprint} AS fingerprint, {metadata_hash} AS metadata_hash
FROM (
    SELECT {columns}, {content} AS content, {vector} AS rowvec_vector FROM {relation} AS source WHERE {something}
) AS rendered
WHERE {whole_key} AND {single}

-- name: blank -- rows with a key and nothing to embed
SELECT {key} FROM {relation} AS source WHERE {whole_key} AND ({something}) IS NOT TRUE AND {single}

-- name: column_types -- how Postgres writes the types of a result's columns
SELECT format_type(oid, modifier)
FROM unnest(%(oids)s::oid[], %(modifiers)s::int[]) WITH ORDINALITY AS described (oid, modifier, position)
ORDER BY position

-- name: unique_key -- whether a valid unique index over columns that are never NULL consists of key columns
SELECT EXISTS (
    SELECT
    FROM pg_index AS i
    WHERE i.indrelid = %(relation)s::regclass
      AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
      AND NOT EXISTS (
          SELECT
          FROM unnest(i.indkey[0:i.indnkeyatts - 1]) AS indexed (number)
          JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = indexed.number
          WHERE a.attname <> ALL (%(key)s) OR NOT a.attnotnull
      )
)

-- name: single -- whether a row's key occurs once; NOT IN hashes the few keys that occur more often
({key}) NOT IN (
    SELECT {key} FROM {relation} AS source WHERE {whole_key} GROUP BY {key} HAVING count(*) > 1
)

-- name: none_unsplit -- contents are not split, so no row has to be split first; reads nothing
SELECT {key} FROM {relation} AS source WHERE false

-- name: see_all -- from here on, a statement that policies would filter fails instead
SET LOCAL row_security = off

-- name: would_read -- plans the read of a source and does not execute it
EXPLAIN SELECT * FROM {relation} AS source

-- name: within -- the rows of a few keys; an index of the source finds them
(SELECT source.* FROM {relation} AS source WHERE EXISTS (SELECT FROM {scope} AS scope WHERE {same_key}))

-- name: relations -- all tables and views of the database, for a name that is not among them
SELECT n.nspname::text, c.relname::text
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'rowvec')
LIMIT 10000
