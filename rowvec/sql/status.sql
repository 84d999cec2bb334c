-- name: live -- the pipelines whose tables clients read
SELECT name FROM rowvec.pipelines WHERE state = 'live'

-- name: of -- one row per pipeline of these names that the ledger has: its last run, its last verdict and its figures
SELECT
    p.name, p.table_schema, p.table_name,
    newest.run_id, newest.cause, newest.started_at, newest.finished_at, newest.error,
    f.verdict, f.waiting, extract(epoch FROM f.oldest)::double precision AS oldest_seconds, f.looked_at,
    f.verified_run, f.verified_at,
    good.finished_at AS good_at,
    (judged.report ->> 'rows')::bigint AS rows,
    (judged.report ->> 'pending')::bigint AS pending,
    (SELECT count(*) FROM rowvec.rejects AS r WHERE r.pipeline_id = p.pipeline_id) AS rejected,
    (SELECT coalesce(sum(j.texts - j.answered), 0)::bigint FROM rowvec.jobs AS j
     WHERE j.pipeline_id = p.pipeline_id AND j.state <> 'collected') AS awaiting,
    (SELECT coalesce(sum(s.settled_usd + s.reserved_usd), 0) FROM rowvec.spending AS s
     WHERE s.family = p.family AND s.month = date_trunc('month', now() AT TIME ZONE 'UTC')) AS month_usd
FROM rowvec.freshness AS f
JOIN rowvec.pipelines AS p ON p.name = f.pipeline
LEFT JOIN rowvec.runs AS newest ON newest.run_id = f.last_run
LEFT JOIN LATERAL (
    SELECT r.report FROM rowvec.runs AS r
    WHERE r.pipeline_id = p.pipeline_id AND r.report ? 'embedded'
    ORDER BY r.run_id DESC LIMIT 1
) AS judged ON true
LEFT JOIN LATERAL (
    SELECT r.finished_at FROM rowvec.runs AS r
    WHERE r.pipeline_id = p.pipeline_id AND r.report ? 'embedded' AND r.state = 'succeeded'
    ORDER BY r.run_id DESC LIMIT 1
) AS good ON true
WHERE p.name = ANY (%(names)s)
ORDER BY p.name
