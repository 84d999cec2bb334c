-- name: start
INSERT INTO rowvec.runs (pipeline_id, cause, state) VALUES (%(pipeline_id)s, %(cause)s, %(state)s) RETURNING run_id

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

-- name: abandoned -- earlier runs and plans of this pipeline that no process will finish; run it with the pipeline's lock
UPDATE rowvec.runs SET state = 'abandoned', finished_at = now()
WHERE pipeline_id = %(pipeline_id)s AND run_id <> %(run_id)s
  AND CASE state WHEN 'running' THEN true
                 WHEN 'planned' THEN pg_try_advisory_xact_lock(%(space)s, run_id::int) ELSE false END

-- name: supersede -- older plans that no run has used, when a new plan is made
UPDATE rowvec.runs SET state = 'abandoned', finished_at = now()
WHERE pipeline_id = %(pipeline_id)s AND run_id <> %(run_id)s
  AND CASE state WHEN 'planned' THEN pg_try_advisory_xact_lock(%(space)s, run_id::int) ELSE false END

-- name: start_plan -- locked before another session can see the row, so that no process clears a plan under way
INSERT INTO rowvec.runs (pipeline_id, cause, state) VALUES (%(pipeline_id)s, 'plan', 'planned')
RETURNING run_id, pg_try_advisory_lock(%(space)s, run_id::int)

-- name: leftovers -- plan and staging tables of runs that are over
SELECT c.relname
FROM pg_class AS c
JOIN rowvec.runs AS r ON c.relname IN ('plan_' || r.run_id, 'staging_' || r.run_id)
WHERE c.relnamespace = 'rowvec'::regnamespace AND r.pipeline_id = %(pipeline_id)s AND r.run_id <> %(run_id)s
  AND r.state NOT IN ('planned', 'running')

-- name: drop
DROP TABLE IF EXISTS {table}

-- name: lock -- one run per pipeline; the session holds it, so that a killed run releases it
SELECT pg_advisory_lock(%(space)s, %(pipeline_id)s)

-- name: lock_timeout -- the server may need a moment to notice that the session of a killed run has ended
SET lock_timeout = '3s'

-- name: unlock
SELECT pg_advisory_unlock(%(space)s, %(pipeline_id)s)
