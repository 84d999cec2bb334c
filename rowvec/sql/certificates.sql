-- name: record -- 48 bytes per row: a digest of its key, and a hash of key, fingerprint and vector
{digest} || sha256(convert_to({key_text}, 'UTF8') || t.fingerprint || sha256({pgvector}.{send}(t.embedding)))

-- name: buckets -- the leaves of the tree, from the vector table itself
SELECT path, count(*) AS rows, string_agg(record, ''::bytea ORDER BY record) AS content
FROM (SELECT encode(substring(record FROM 1 FOR 2), 'hex') AS path, record
      FROM (SELECT {record} AS record FROM {table} AS t) AS each) AS placed
GROUP BY path

-- name: forget -- the next run that compares everything builds the tree again
DELETE FROM rowvec.hash_tree WHERE pipeline_id = {pipeline_id}

-- name: build
INSERT INTO rowvec.hash_tree (pipeline_id, path, rows, content)
SELECT {pipeline_id}, path, rows, content FROM ({buckets}) AS found
RETURNING path

-- name: update -- the tree after the changed keys: the old records of their buckets go, and those of the rows as they are now
-- come. Of the nodes above, only the entries of children that have changed are computed again.
WITH present AS MATERIALIZED (
    SELECT {digest} AS digest, {record} AS record
    FROM (SELECT DISTINCT {key} FROM {unrecorded}) AS k LEFT JOIN {table} AS t ON {same_key}
), changed AS MATERIALIZED (
    SELECT digest FROM present UNION SELECT substring(record FROM 1 FOR 16) FROM present WHERE record IS NOT NULL
), touched AS MATERIALIZED (
    SELECT c.path, coalesce(h.rows, 0) AS rows, h.content
    FROM (SELECT DISTINCT encode(substring(digest FROM 1 FOR 2), 'hex') AS path FROM changed) AS c
    LEFT JOIN LATERAL ({node}) AS h ON true
), records AS (
    SELECT path, substring(content FROM 48 * i::int + 1 FOR 48) AS record
    FROM touched CROSS JOIN generate_series(0, rows - 1) AS i
    WHERE NOT EXISTS (SELECT FROM changed WHERE digest = substring(content FROM 48 * i::int + 1 FOR 16))
    UNION ALL
    SELECT DISTINCT encode(substring(record FROM 1 FOR 2), 'hex'), record FROM present WHERE record IS NOT NULL
), level_4 AS MATERIALIZED (
    SELECT path, count(record) AS rows, count(record) - touched.rows AS added,
        coalesce(string_agg(record, ''::bytea ORDER BY record), '') AS content
    FROM touched LEFT JOIN records USING (path)
    GROUP BY path, touched.rows
), {levels}, written AS (
    INSERT INTO rowvec.hash_tree AS h (pipeline_id, path, rows, content)
    SELECT {pipeline_id}, path, rows, content FROM ({all_levels}) AS node
    ON CONFLICT (pipeline_id, path) DO UPDATE SET rows = excluded.rows, content = excluded.content
)
SELECT rows, encode(sha256(content), 'hex') FROM level_0

-- name: level -- the parents of the nodes that have changed; a child without rows has no entry
{level} AS MATERIALIZED (
    SELECT c.path, coalesce(h.rows, 0) + added AS rows, added, coalesce((
        SELECT string_agg(entry, ''::bytea ORDER BY entry)
        FROM (
            SELECT substring(h.content FROM 33 * i + 1 FOR 33)
            FROM generate_series(0, length(h.content) / 33 - 1) AS i
            WHERE strpos(digits, chr(get_byte(h.content, 33 * i))) = 0
            UNION ALL SELECT unnest(entries)
        ) AS child (entry)
    ), '') AS content
    FROM (
        SELECT left(path, -1) AS path, sum(added)::bigint AS added, string_agg(right(path, 1), '') AS digits,
            array_agg(convert_to(right(path, 1), 'UTF8') || sha256(content)) FILTER (WHERE rows > 0) AS entries
        FROM {below} GROUP BY left(path, -1)
    ) AS c
    LEFT JOIN LATERAL ({node}) AS h ON true
)

-- name: node -- as it was; the limit makes the planner look each one up by the index, and never read the whole tree
SELECT h.rows, h.content FROM rowvec.hash_tree AS h WHERE h.pipeline_id = {pipeline_id} AND h.path = c.path LIMIT 1

-- name: nodes_of
SELECT path, rows, content FROM {level}

-- name: nodes -- one level: each node from its children; a child without rows is left out
INSERT INTO rowvec.hash_tree AS h (pipeline_id, path, rows, content)
SELECT
    {pipeline_id}, parent.path, coalesce(sum(child.rows), 0),
    coalesce(string_agg(convert_to(right(child.path, 1), 'UTF8') || sha256(child.content), ''::bytea ORDER BY child.path), '')
FROM unnest({paths}::text[]) AS parent (path)
CROSS JOIN unnest(string_to_array('0123456789abcdef', NULL)) AS digit
LEFT JOIN rowvec.hash_tree AS child
    ON child.pipeline_id = {pipeline_id} AND child.path = parent.path || digit AND child.rows > 0
GROUP BY parent.path
ON CONFLICT (pipeline_id, path) DO UPDATE SET rows = excluded.rows, content = excluded.content

-- name: root
SELECT rows, encode(sha256(content), 'hex') FROM rowvec.hash_tree WHERE pipeline_id = {pipeline_id} AND path = ''

-- name: newest -- the last certificate, and whether the tree still has its root
SELECT run_id, rows, vector, root, before, chain,
    EXISTS (SELECT FROM rowvec.hash_tree AS h
            WHERE h.pipeline_id = c.pipeline_id AND h.path = '' AND encode(sha256(h.content), 'hex') = c.root)
FROM rowvec.certificates AS c
WHERE pipeline_id = {pipeline_id} ORDER BY run_id DESC LIMIT 1

-- name: note -- also again, by a command that tries the end of its run a second time, and by a restore to an old run
INSERT INTO rowvec.certificates (pipeline_id, run_id, rows, vector, root, before, chain)
SELECT %(pipeline_id)s::int, %(run_id)s::bigint, %(rows)s::bigint, %(vector)s, %(root)s, %(before)s, %(chain)s
WHERE NOT EXISTS (SELECT FROM rowvec.certificate_blocks
                  WHERE pipeline_id = %(pipeline_id)s::int AND last_run >= %(run_id)s::bigint)
ON CONFLICT (pipeline_id, run_id) DO UPDATE
SET rows = excluded.rows, vector = excluded.vector, root = excluded.root, before = excluded.before,
    chain = excluded.chain

-- name: pack -- the oldest certificates go into a block of 48 bytes each, up to one that does not follow the one before
WITH oldest AS MATERIALIZED (
    SELECT run_id, rows, root, before, chain, before IS DISTINCT FROM lag(chain, 1, before) OVER (ORDER BY run_id) AS is_gap
    FROM rowvec.certificates
    WHERE pipeline_id = {pipeline_id}
      AND (SELECT count(*) FROM rowvec.certificates WHERE pipeline_id = {pipeline_id}) >= {kept} + {block}
    ORDER BY run_id LIMIT {block}
), followed AS MATERIALIZED (
    SELECT * FROM (SELECT o.*, bool_or(is_gap) OVER (ORDER BY run_id) AS is_behind_gap FROM oldest AS o) AS o
    WHERE NOT is_behind_gap
), packed AS (
    INSERT INTO rowvec.certificate_blocks (pipeline_id, last_run, before, chain, content)
    SELECT
        {pipeline_id}, max(run_id), (array_agg(before ORDER BY run_id))[1], (array_agg(chain ORDER BY run_id DESC))[1],
        string_agg(int8send(run_id) || int8send(rows) || decode(root, 'hex'), ''::bytea ORDER BY run_id)
    FROM followed HAVING count(*) > 0
)
DELETE FROM rowvec.certificates AS c USING followed AS f WHERE c.pipeline_id = {pipeline_id} AND c.run_id = f.run_id

-- name: chain -- all certificates in the order of their runs: a certificate of each row, and 48 bytes per certificate of a block
SELECT last_run, before, chain, content FROM rowvec.certificate_blocks WHERE pipeline_id = {pipeline_id}
UNION ALL
SELECT run_id, before, chain, int8send(run_id) || int8send(rows) || decode(root, 'hex')
FROM rowvec.certificates WHERE pipeline_id = {pipeline_id}
ORDER BY 1

-- name: run_of_root
SELECT max(run_id) FROM rowvec.roots WHERE pipeline_id = {pipeline_id} AND root = {root}

-- name: manifest_of_run
SELECT manifest FROM rowvec.runs WHERE run_id = {run_id} AND pipeline_id = {pipeline_id}

-- name: keep_buckets -- those of the vector table, for the rest of the transaction
CREATE TEMP TABLE verified ON COMMIT DROP AS {buckets}

-- name: hashes_kept -- of the buckets that keep_buckets has kept
SELECT path, sha256(content) FROM pg_temp.verified

-- name: hashes_certified -- of those that the ledger has
SELECT path, sha256(content) FROM rowvec.hash_tree
WHERE pipeline_id = {pipeline_id} AND length(path) = 4 AND rows > 0

-- name: differences -- records that only one side has; two of one key are a row that was changed
WITH unequal AS MATERIALIZED (
    SELECT t.rows AS rows, t.content AS content, h.rows AS certified_rows, h.content AS certified_content
    FROM pg_temp.verified AS t
    FULL JOIN (SELECT path, rows, content FROM rowvec.hash_tree
               WHERE pipeline_id = {pipeline_id} AND length(path) = 4 AND rows > 0) AS h USING (path)
    WHERE t.content IS DISTINCT FROM h.content
), found AS (
    SELECT substring(content FROM 48 * i::int + 1 FOR 48) AS record FROM unequal, generate_series(0, rows - 1) AS i
), certified AS (
    SELECT substring(certified_content FROM 48 * i::int + 1 FOR 48) AS record
    FROM unequal, generate_series(0, certified_rows - 1) AS i
)
SELECT
    CASE WHEN f.record IS NULL THEN 'removed' WHEN c.record IS NULL THEN 'added' ELSE 'changed' END,
    coalesce(substring(f.record FROM 1 FOR 16), substring(c.record FROM 1 FOR 16)) AS digest,
    count(*) OVER (PARTITION BY f.record IS NULL, c.record IS NULL)
FROM found AS f
FULL JOIN certified AS c ON substring(f.record FROM 1 FOR 16) = substring(c.record FROM 1 FOR 16)
WHERE f.record IS DISTINCT FROM c.record
ORDER BY digest
LIMIT {limit}

-- name: keys -- of these digests
SELECT {digest}, {key_json} FROM {table} AS t WHERE {digest} = ANY ({digests}::bytea[])

-- name: row -- one row, by its key; the texts of the key as the database prints them
SELECT {texts}, encode(t.fingerprint, 'hex'), encode(sha256({pgvector}.{send}(t.embedding)), 'hex')
FROM (SELECT {typed}) AS k LEFT JOIN {table} AS t ON {same_key}

-- name: branch -- the nodes from the root down to a bucket, as far as there are rows
SELECT encode(content, 'hex') FROM rowvec.hash_tree
WHERE pipeline_id = {pipeline_id} AND path = ANY ({paths}::text[]) AND (rows > 0 OR path = '')
ORDER BY length(path)
