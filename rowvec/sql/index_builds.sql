-- name: add
INSERT INTO rowvec.index_builds (
    table_schema, table_name, index_name, index_oid, choice, why, reason, rows, newest_run, seconds,
    memory_needed, memory_given, spilled_after, built_at, outcome)
VALUES (
    %(table_schema)s, %(table_name)s, %(index_name)s, coalesce(to_regclass(%(qualified)s), 0), %(choice)s, %(why)s,
    %(reason)s, %(rows)s, %(newest_run)s, %(seconds)s, %(memory_needed)s, %(memory_given)s, %(spilled_after)s,
    clock_timestamp(), %(outcome)s)
RETURNING build_id

-- name: recorded -- builds of a table, the newest first; enough of them to know what was tried in vain
SELECT b.build_id, b.index_name, b.index_oid, b.choice, b.rows, b.newest_run, b.recall, b.recall_k, b.outcome
FROM rowvec.index_builds AS b
WHERE b.table_schema = %(schema)s AND b.table_name = %(table)s
ORDER BY b.build_id DESC
LIMIT 100

-- name: ended -- whatever is not there any more serves no more
UPDATE rowvec.index_builds AS b SET outcome = %(outcome)s
WHERE b.table_schema = %(schema)s AND b.table_name = %(table)s AND b.outcome = 'serves'
  AND NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = b.index_oid AND c.relname = b.index_name)

-- name: looked
UPDATE rowvec.index_builds SET came = %(came)s, went = %(went)s, looked_at = clock_timestamp()
WHERE build_id = %(build_id)s

-- name: recalled -- REINDEX and VACUUM FULL make another graph, in another file, and count nowhere
UPDATE rowvec.index_builds
SET recall = %(recall)s, recall_low = %(low)s, recall_high = %(high)s, recall_k = %(k)s, recall_queries = %(queries)s,
    recalled_over = %(over)s::jsonb || jsonb_build_object('file', pg_relation_filenode(index_oid)),
    recalled_at = clock_timestamp()
WHERE build_id = %(build_id)s

-- name: flush -- what this session has written is in the server's statistics once this statement is over
SELECT pg_stat_force_next_flush()

-- name: activity -- how often a table was written and vacuumed since its statistics began
SELECT n_tup_ins + n_tup_upd + n_tup_del, vacuum_count + autovacuum_count
FROM pg_stat_all_tables WHERE schemaname = %(schema)s AND relname = %(table)s

-- name: standing -- what a build's index was found to find, where that is of the very same table and search
SELECT recall, recall_low, recall_high, recall_k, recall_queries, recalled_at
FROM rowvec.index_builds
WHERE build_id = %(build_id)s
  AND recalled_over = %(over)s::jsonb || jsonb_build_object('file', pg_relation_filenode(index_oid))
  AND recall_k = %(k)s AND recall_queries >= %(queries)s AND recall >= %(at_least)s

-- name: rows -- and how many of them came with later runs than that one, and than that other
SELECT
    count(*),
    count(*) FILTER (WHERE run_id > {served_since}),
    count(*) FILTER (WHERE run_id > {tried_since}),
    coalesce(min(run_id), 0),
    coalesce(max(run_id), 0)
FROM {table}
