-- name: last_runs -- the last runs of a pipeline that could change its vectors, newest first
SELECT run_id, started_at, cause, state, error,
       (report->>'rows')::bigint AS rows, (report->>'embedded')::bigint AS embedded,
       (report->>'reused')::bigint AS reused, (report->>'cost_usd')::float AS cost_usd,
       (report->>'recall_at_k')::float AS recall_at_k, (report->'seconds'->>'total')::float AS seconds
FROM rowvec.runs
WHERE pipeline_id = %(pipeline_id)s AND state NOT IN ('planned', 'running')
  -- A plan that no run used has neither of these, and neither has a command that only reads or prunes.
  AND (report ? 'embedded' OR error IS NOT NULL)
ORDER BY run_id DESC
LIMIT %(limit)s
