-- name: start
INSERT INTO rowvec.runs (pipeline_id, cause, lease) VALUES (%(pipeline_id)s, %(cause)s, %(lease)s) RETURNING run_id

-- name: number_above
SELECT setval(sequence, %(number)s)
FROM pg_get_serial_sequence('rowvec.runs', 'run_id') AS sequence
WHERE %(number)s > (SELECT coalesce(max(run_id), 0) FROM rowvec.runs)

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
    WHERE pipeline_id = %(pipeline_id)s AND run_id <> %(run_id)s AND state IN ('running', 'planned')
    FOR UPDATE SKIP LOCKED
)

-- name: over -- those of these runs that need their files no more; the run that begins has no files of its own yet
-- A database that was set back does not know its latest runs, and gives their numbers again.
SELECT given.run_id FROM unnest(%(run_ids)s::bigint[]) AS given (run_id) LEFT JOIN rowvec.runs AS r USING (run_id)
WHERE r.run_id IS NULL
   OR r.pipeline_id = %(pipeline_id)s AND (r.state NOT IN ('planned', 'running') OR r.run_id = %(run_id)s)

-- name: leftovers -- plan and staging tables of runs that are over
SELECT c.relname
FROM pg_class AS c
JOIN rowvec.runs AS r ON c.relname IN ('plan_' || r.run_id, 'staging_' || r.run_id, 'scope_' || r.run_id)
WHERE c.relnamespace = 'rowvec'::regnamespace AND r.pipeline_id = %(pipeline_id)s AND r.run_id <> %(run_id)s
  AND r.state NOT IN ('planned', 'running')

-- name: drop
DROP TABLE IF EXISTS {table}

-- name: drop_patience
SET LOCAL lock_timeout = '1s'

-- name: end_sessions -- of runs that lost their lease in the middle of a transaction: they can commit nothing any more
SELECT pg_terminate_backend(held.pid, 2000)
FROM (
    SELECT DISTINCT a.pid
    FROM rowvec.runs AS r
    JOIN pg_class AS c
      ON c.relnamespace = 'rowvec'::regnamespace AND c.relname IN ('plan_' || r.run_id, 'staging_' || r.run_id, 'scope_' || r.run_id)
    JOIN pg_locks AS l
      ON l.relation = c.oid AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    JOIN pg_stat_activity AS a USING (pid)
    WHERE r.pipeline_id = %(pipeline_id)s AND r.run_id <> %(run_id)s AND r.state <> 'planned'
      AND a.pid <> pg_backend_pid() AND a.usename = current_user AND a.application_name LIKE 'rowvec%%'
) AS held
