-- name: add
INSERT INTO rowvec.index_builds (
    table_schema, table_name, index_name, index_oid, choice, why, reason, rows, newest_run, seconds,
    memory_needed, memory_given, spilled_after, built_at, outcome)
VALUES (
    %(table_schema)s, %(table_name)s, %(index_name)s, coalesce(to_regclass(%(qualified)s), 0), %(choice)s, %(why)s,
    %(reason)s, %(rows)s, %(newest_run)s, %(seconds)s, %(memory_needed)s, %(memory_given)s, %(spilled_after)s,
    clock_timestamp(), %(outcome)s)
RETURNING build_id

-- name: recorded -- the latest builds of a table, the newest first; enough to see which builds had too low a recall
SELECT b.build_id, b.index_name, b.index_oid, b.choice, b.rows, b.newest_run, b.recall, b.recall_k, b.outcome
FROM rowvec.index_builds AS b
WHERE b.table_schema = %(schema)s AND b.table_name = %(table)s
ORDER BY b.build_id DESC
LIMIT 100

-- name: ended -- a build whose index no longer exists gets its final outcome
UPDATE rowvec.index_builds AS b SET outcome = %(outcome)s
WHERE b.table_schema = %(schema)s AND b.table_name = %(table)s AND b.outcome = 'serves'
  AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = b.index_oid AND c.relname = b.index_name)

-- name: raised -- the search settings that a run has raised for the present index of this name
SELECT b.raised FROM rowvec.index_builds AS b
WHERE b.table_schema = %(schema)s AND b.table_name = %(table)s AND b.index_name = %(index)s
  AND b.index_oid = to_regclass(%(qualified)s)
ORDER BY b.build_id DESC
LIMIT 1

-- name: raised_of_partitions -- the search settings that runs have raised for the present indexes of all partitions
SELECT b.raised
FROM pg_inherits AS i
JOIN pg_class AS t ON t.oid = i.inhrelid
JOIN pg_namespace AS n ON n.oid = t.relnamespace
JOIN rowvec.index_builds AS b ON b.table_schema = n.nspname AND b.table_name = t.relname AND b.raised IS NOT NULL
JOIN pg_class AS c ON c.oid = b.index_oid AND c.relname = b.index_name
WHERE i.inhparent = to_regclass(%(table)s)

-- name: raise
UPDATE rowvec.index_builds SET raised = %(raised)s WHERE build_id = %(build_id)s AND raised IS DISTINCT FROM %(raised)s

-- name: looked
UPDATE rowvec.index_builds SET came = %(came)s, went = %(went)s, looked_at = clock_timestamp()
WHERE build_id = %(build_id)s

-- name: recalled -- with the index's file: REINDEX and VACUUM FULL build a new one, and no statistics count that
UPDATE rowvec.index_builds
SET recall = %(recall)s, recall_low = %(low)s, recall_high = %(high)s, recall_k = %(k)s, recall_queries = %(queries)s,
    recalled_over = %(over)s::jsonb || jsonb_build_object('file', pg_relation_filenode(index_oid)),
    recalled_at = clock_timestamp()
WHERE build_id = %(build_id)s

-- name: flush -- after this statement, the server's statistics include what this session wrote
SELECT pg_stat_force_next_flush()

-- name: activity -- how many rows were written and how many VACUUMs ran since the table's statistics began
SELECT n_tup_ins + n_tup_upd + n_tup_del, vacuum_count + autovacuum_count
FROM pg_stat_all_tables WHERE schemaname = %(schema)s AND relname = %(table)s

-- name: standing -- the measured recall of a build's index, if table, index and search settings are unchanged since
SELECT recall, recall_low, recall_high, recall_k, recall_queries, recalled_at
FROM rowvec.index_builds
WHERE build_id = %(build_id)s
  AND recalled_over = %(over)s::jsonb || jsonb_build_object('file', pg_relation_filenode(index_oid))
  AND recall_k = %(k)s AND recall_queries >= %(queries)s AND recall >= %(at_least)s

-- name: rows -- the number of rows, and how many of them were written by runs after each of two given runs
SELECT
    count(*),
    count(*) FILTER (WHERE run_id > {served_since}),
    count(*) FILTER (WHERE run_id > {tried_since}),
    coalesce(min(run_id), 0),
    coalesce(max(run_id), 0)
FROM {table}
