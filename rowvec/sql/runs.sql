-- name: start
INSERT INTO rowvec.runs (pipeline_id, cause, lease) VALUES (%(pipeline_id)s, %(cause)s, %(lease)s) RETURNING run_id

-- name: number_above -- the sequence never goes back
SELECT setval(sequence, %(number)s)
FROM pg_get_serial_sequence('rowvec.runs', 'run_id') AS sequence
WHERE %(number)s > (SELECT coalesce(max(run_id), 0) FROM rowvec.runs)
  AND %(number)s > coalesce(pg_sequence_last_value(sequence::regclass), 0)

-- name: finish
UPDATE rowvec.runs
SET state = %(state)s, finished_at = now(), error = %(error)s,
    report = coalesce(%(report)s, report), checks = coalesce(%(checks)s, checks),
    manifest = coalesce(%(manifest)s, manifest), manifest_sha256 = coalesce(%(manifest_sha256)s, manifest_sha256)
WHERE run_id = %(run_id)s

-- name: lost -- by the run itself; the run that took over may have marked it as abandoned
UPDATE rowvec.runs SET state = 'lost', finished_at = now(), error = %(error)s
WHERE run_id = %(run_id)s AND lease = %(lease)s AND state IN ('running', 'abandoned')

-- name: abandoned -- earlier runs of this pipeline, and plans of older versions of rowvec; only the lease's owner asks for it
-- A run that was stopped while it recorded its end still has its row: a later run finds it.
UPDATE rowvec.runs SET state = 'abandoned', finished_at = now()
WHERE run_id IN (
    SELECT run_id FROM rowvec.runs
    WHERE pipeline_id = {pipeline_id} AND run_id <> {run_id} AND state IN ('running', 'planned')
    FOR UPDATE SKIP LOCKED
)

-- name: over -- those of these runs that need their files no more; the run that begins has no files of its own yet
-- A database that was set back does not know its latest runs, and gives their numbers again.
SELECT given.run_id FROM unnest(%(run_ids)s::bigint[]) AS given (run_id) LEFT JOIN rowvec.runs AS r USING (run_id)
WHERE r.run_id IS NULL
   OR r.pipeline_id = %(pipeline_id)s AND (r.state NOT IN ('planned', 'running') OR r.run_id = %(run_id)s)

-- name: look_back -- whether an earlier run of this pipeline is not over in the ledger, or a table of one is there; and
-- whether there are more runs than are kept
SELECT EXISTS (SELECT FROM rowvec.runs AS r
        WHERE r.pipeline_id = {pipeline_id} AND r.run_id <> {run_id} AND r.state IN ('running', 'planned'))
    OR EXISTS (SELECT FROM ({tables}) AS t JOIN rowvec.runs AS r USING (run_id)
        WHERE r.pipeline_id = {pipeline_id} AND r.run_id <> {run_id} AND r.state <> 'planned'),
    EXISTS (SELECT FROM rowvec.runs AS r WHERE r.pipeline_id = {pipeline_id} ORDER BY r.run_id DESC OFFSET {kept})

-- name: tables -- the tables in which runs keep what they work on
SELECT c.oid, c.relname, split_part(c.relname, '_', 2)::bigint AS run_id
FROM pg_class AS c
WHERE c.relnamespace = 'rowvec'::regnamespace AND c.relname ~ '^(plan|staging|scope)_[0-9]{{1,18}}$'

-- name: leftovers -- those of runs that are over
SELECT t.relname
FROM ({tables}) AS t JOIN rowvec.runs AS r USING (run_id)
WHERE r.pipeline_id = {pipeline_id} AND r.run_id <> {run_id} AND r.state NOT IN ('planned', 'running')

-- name: forget_some -- of the runs of this pipeline that are older than those that are kept; each run looks at a few
WITH old AS MATERIALIZED (
    SELECT o.run_id FROM rowvec.runs AS o WHERE o.pipeline_id = {pipeline_id}
    ORDER BY o.run_id DESC OFFSET {kept} LIMIT {few}
), gone AS (
    DELETE FROM rowvec.runs AS r USING old WHERE r.run_id = old.run_id
      AND r.report @> '{{"new": 0, "changed": 0, "embedded": 0}}' AND {not_needed}
    RETURNING r.run_id
)
{shorten} AND r.run_id IN (SELECT run_id FROM old) AND NOT EXISTS (SELECT FROM gone WHERE gone.run_id = r.run_id)

-- name: shorten -- what is left of an old run's report are the figures that a restore brings back
UPDATE rowvec.runs AS r SET checks = NULL, report = CASE WHEN r.report ? 'embedded' THEN jsonb_build_object(
    'embedded', r.report -> 'embedded', 'tokens', r.report -> 'tokens', 'cost_usd', r.report -> 'cost_usd') END
WHERE r.checks IS NOT NULL AND {is_settled}

-- name: shorten_old -- of all that are older than those that are kept
{shorten} AND r.run_id IN ({old})

-- name: old -- the runs of a pipeline that are older than those that are kept
SELECT o.run_id FROM rowvec.runs AS o WHERE o.pipeline_id = {pipeline_id} ORDER BY o.run_id DESC OFFSET {kept}

-- name: forgettable -- also those that have written rows, or paid for vectors, which nobody has any more
SELECT r.run_id FROM rowvec.runs AS r
WHERE r.run_id IN ({old}) AND NOT EXISTS (SELECT FROM {table} AS t WHERE t.run_id = r.run_id)
  AND NOT EXISTS (SELECT FROM rowvec.embeddings AS e WHERE e.run_id = r.run_id)
  AND NOT EXISTS (SELECT FROM rowvec.answers AS e WHERE e.run_id = r.run_id) AND {not_needed}

-- name: count_forgettable
SELECT count(*) FROM ({runs}) AS r

-- name: forget
DELETE FROM rowvec.runs WHERE run_id IN ({runs})

-- name: is_settled -- a run that is over, and that is not the last good one
r.state NOT IN ('planned', 'running', 'waiting')
    AND (r.state <> 'succeeded' OR EXISTS (SELECT FROM rowvec.runs AS n
        WHERE n.pipeline_id = r.pipeline_id AND n.run_id > r.run_id AND n.state = 'succeeded' AND n.report ? 'embedded'))

-- name: not_needed -- a run that is settled, and that no object in the store, no proof and no job names
{is_settled} AND r.manifest IS NULL
    AND NOT EXISTS (SELECT FROM rowvec.artifacts AS a WHERE a.run_id = r.run_id)
    AND NOT EXISTS (SELECT FROM rowvec.artifacts AS a WHERE a.last_run_id = r.run_id)
    AND NOT EXISTS (SELECT FROM rowvec.changes AS c WHERE r.run_id IN (c.verified_run, c.merged_run))
    AND NOT EXISTS (SELECT FROM rowvec.jobs AS j
        WHERE j.pipeline_id = r.pipeline_id AND r.run_id IN (j.run_id, j.reported_run))

-- name: drop
DROP TABLE IF EXISTS {table}

-- name: drop_patience
SET LOCAL lock_timeout = '1s'

-- name: end_sessions -- of runs that lost their lease in the middle of a transaction: they can commit nothing any more
SELECT pg_terminate_backend(held.pid, 2000)
FROM (
    SELECT DISTINCT a.pid
    FROM ({tables}) AS t
    JOIN rowvec.runs AS r USING (run_id)
    JOIN pg_locks AS l
      ON l.relation = t.oid AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    JOIN pg_stat_activity AS a USING (pid)
    WHERE r.pipeline_id = {pipeline_id} AND r.run_id <> {run_id} AND r.state <> 'planned'
      AND a.pid <> pg_backend_pid() AND a.usename = current_user AND a.application_name LIKE 'rowvec%'
) AS held
