-- name: live -- the pipelines whose tables clients read
SELECT name FROM rowvec.pipelines WHERE state = 'live'

-- name: of -- one row per pipeline of these names that the ledger has: its last run, its last verdict and its figures
SELECT
    p.name, p.table_schema, p.table_name,
    newest.run_id, newest.cause, newest.started_at, newest.finished_at, newest.error,
    -- A run whose lease has ended was killed, and the next run marks it so.
    CASE WHEN newest.state = 'running' AND NOT newest.is_held THEN 'abandoned' ELSE newest.state END AS state,
    (newest.report ->> 'consistent')::boolean AS consistent,
    proven.finished_at AS proven_at,
    (judged.report ->> 'rows')::bigint AS rows,
    (judged.report ->> 'pending')::bigint AS pending,
    (SELECT count(*) FROM rowvec.rejects AS r WHERE r.pipeline_id = p.pipeline_id) AS rejected,
    (SELECT coalesce(sum(j.texts - j.answered), 0)::bigint FROM rowvec.jobs AS j
     WHERE j.pipeline_id = p.pipeline_id AND j.state <> 'collected') AS awaiting,
    (SELECT coalesce(sum(s.settled_usd + s.reserved_usd), 0) FROM rowvec.spending AS s
     WHERE s.family = p.family AND s.month = date_trunc('month', now() AT TIME ZONE 'UTC')) AS month_usd
FROM rowvec.pipelines AS p
-- A run of a command that only reads or prunes has no such report, unless it failed.
LEFT JOIN LATERAL (
    SELECT r.*, l.held AND l.number = r.lease AND w.ends_at > clock_timestamp() AS is_held
    FROM rowvec.runs AS r
    LEFT JOIN rowvec.run_leases AS l ON l.pipeline_id = r.pipeline_id
    LEFT JOIN rowvec.lease_renewals AS w ON w.pipeline_id = r.pipeline_id
    WHERE r.pipeline_id = p.pipeline_id
      AND (r.report ? 'embedded' OR r.error IS NOT NULL OR r.state IN ('running', 'abandoned'))
    ORDER BY r.run_id DESC LIMIT 1
) AS newest ON true
LEFT JOIN LATERAL (
    SELECT r.report FROM rowvec.runs AS r
    WHERE r.pipeline_id = p.pipeline_id AND r.report ? 'embedded'
    ORDER BY r.run_id DESC LIMIT 1
) AS judged ON true
LEFT JOIN LATERAL (
    SELECT r.finished_at FROM rowvec.runs AS r
    WHERE r.pipeline_id = p.pipeline_id AND r.report ? 'embedded' AND r.state = 'succeeded'
    ORDER BY r.run_id DESC LIMIT 1
) AS proven ON true
WHERE p.name = ANY (%(names)s)
ORDER BY p.name
