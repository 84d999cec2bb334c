-- name: prepare -- recorded before the provider is called
INSERT INTO rowvec.jobs (pipeline_id, run_id, mark, texts, tokens, reserved_usd, reserved_month)
VALUES (%(pipeline_id)s, %(run_id)s, %(mark)s, %(texts)s, %(tokens)s, %(reserved_usd)s, %(reserved_month)s)
RETURNING job_id

-- name: copy_texts
COPY rowvec.job_texts (job_id, pipeline_id, fingerprint) FROM STDIN (FORMAT binary)

-- name: submitted
UPDATE rowvec.jobs SET state = 'submitted', provider_id = %(provider_id)s, provider_state = %(provider_state)s
WHERE job_id = %(job_id)s

-- name: seen
UPDATE rowvec.jobs SET provider_state = %(provider_state)s WHERE job_id = %(job_id)s

-- name: unfinished
SELECT job_id, run_id, mark::text AS mark, state, provider_id, provider_state, texts, tokens, reserved_usd, reserved_month
FROM rowvec.jobs WHERE pipeline_id = %(pipeline_id)s AND state <> 'collected' ORDER BY job_id

-- name: forget -- the provider never received the job, or refused it whole; its texts become free again
DELETE FROM rowvec.jobs WHERE job_id = %(job_id)s

-- name: answered -- the texts whose answers were kept
DELETE FROM rowvec.job_texts WHERE job_id = %(job_id)s AND fingerprint = ANY (%(fingerprints)s)

-- name: own_texts -- the texts that the job has and that are not answered; a response may name a text never sent
SELECT fingerprint FROM rowvec.job_texts
WHERE job_id = %(job_id)s AND state = 'asked' AND fingerprint = ANY (%(fingerprints)s)

-- name: add -- to the job's totals, in the transaction that keeps the answers, so that a kill counts none twice
UPDATE rowvec.jobs
SET answered = answered + %(texts)s, answered_tokens = answered_tokens + %(tokens)s, cost_usd = cost_usd + %(usd)s
WHERE job_id = %(job_id)s

-- name: give_back
UPDATE rowvec.job_texts SET state = 'returned' WHERE job_id = %(job_id)s AND fingerprint = ANY (%(fingerprints)s)

-- name: refused
UPDATE rowvec.job_texts AS t SET state = 'refused', reason = r.reason, detail = r.detail
FROM unnest(%(fingerprints)s::bytea[], %(reasons)s::text[], %(details)s::text[]) AS r (fingerprint, reason, detail)
WHERE t.job_id = %(job_id)s AND t.fingerprint = r.fingerprint

-- name: doubt -- if a job answered no text, the request was probably wrong and not its texts
UPDATE rowvec.job_texts SET state = 'returned', reason = NULL, detail = NULL
WHERE job_id = %(job_id)s AND state = 'refused'

-- name: returned
UPDATE rowvec.job_texts SET state = 'returned' WHERE job_id = %(job_id)s AND state = 'asked'

-- name: collected
UPDATE rowvec.jobs SET state = 'collected', collected_at = now(), provider_state = %(provider_state)s
WHERE job_id = %(job_id)s AND state = 'submitted'
RETURNING answered, cost_usd

-- name: eligible -- texts of the plan that are not paid for, are in no job, and were not given back too often
SELECT p.fingerprint, p.content
FROM (
    SELECT DISTINCT ON (fingerprint) fingerprint, content FROM {plan}
    WHERE rowvec_batch IS NOT NULL ORDER BY fingerprint
) AS p
WHERE NOT {paid_for} AND NOT {in_table}
  AND NOT EXISTS (
      SELECT FROM rowvec.job_texts AS j
      WHERE j.pipeline_id = {pipeline_id} AND j.fingerprint = p.fingerprint
      GROUP BY j.fingerprint
      HAVING bool_or(j.state <> 'returned') OR count(*) >= {tries})

-- name: in_table -- if the ledger was lost, a vector may be only in the vector table
(p.fingerprint IN (SELECT fingerprint FROM {table} WHERE embedding IS NOT NULL))

-- name: awaited -- whether a job under way has texts of the plan
SELECT EXISTS (
    SELECT FROM rowvec.job_texts AS j
    JOIN {plan} AS p ON p.fingerprint = j.fingerprint AND p.rowvec_batch IS NOT NULL
    WHERE j.pipeline_id = {pipeline_id} AND j.state = 'asked')

-- name: overdue -- whether the first job since the last successful run is older than this
SELECT EXISTS (
    SELECT FROM rowvec.jobs
    WHERE pipeline_id = %(pipeline_id)s AND created_at < now() - make_interval(secs => %(hours)s * 3600)
      AND run_id > (SELECT coalesce(max(run_id), 0) FROM rowvec.runs
                    WHERE pipeline_id = %(pipeline_id)s AND state = 'succeeded'))

-- name: refusals
SELECT DISTINCT ON (fingerprint) fingerprint, reason, detail FROM rowvec.job_texts
WHERE pipeline_id = %(pipeline_id)s AND state = 'refused'

-- name: forget_refusals
DELETE FROM rowvec.job_texts WHERE pipeline_id = %(pipeline_id)s AND state = 'refused'

-- name: unreported -- the totals of jobs that no run's report contains yet
SELECT coalesce(sum(answered), 0), coalesce(sum(answered_tokens), 0), coalesce(sum(cost_usd), 0)
FROM rowvec.jobs WHERE pipeline_id = %(pipeline_id)s AND state = 'collected' AND reported_run IS NULL

-- name: report
UPDATE rowvec.jobs SET reported_run = %(run_id)s
WHERE pipeline_id = %(pipeline_id)s AND state = 'collected' AND reported_run IS NULL

-- name: forget_texts -- after a run has succeeded, every text that jobs gave back is embedded or rejected
DELETE FROM rowvec.job_texts WHERE pipeline_id = %(pipeline_id)s AND state <> 'asked'

-- name: at_work -- for a plan: the number of jobs under way, and of their texts
SELECT count(*), coalesce(sum(texts), 0) FROM rowvec.jobs
WHERE pipeline_id = %(pipeline_id)s AND state <> 'collected'
