-- name: create -- a pipeline's first lease, which nobody holds
INSERT INTO rowvec.run_leases (pipeline_id) VALUES (%(pipeline_id)s) ON CONFLICT DO NOTHING

-- name: create_renewals
INSERT INTO rowvec.lease_renewals (pipeline_id) VALUES (%(pipeline_id)s) ON CONFLICT DO NOTHING

-- name: look
SELECT l.number, l.held, r.renewals, l.seconds, l.machine, l.pid, l.started
FROM rowvec.run_leases AS l JOIN rowvec.lease_renewals AS r USING (pipeline_id)
WHERE l.pipeline_id = %(pipeline_id)s

-- name: lock -- waits for the transactions of the owner that are about to commit, and keeps its renewals out
SELECT l.number, l.held, r.renewals, l.seconds, l.machine, l.pid, l.started
FROM rowvec.run_leases AS l JOIN rowvec.lease_renewals AS r USING (pipeline_id)
WHERE l.pipeline_id = %(pipeline_id)s
FOR UPDATE OF l, r

-- name: is_run_by_old_version -- versions without leases hold this lock while they run; ours ends with the statement
SELECT NOT pg_try_advisory_xact_lock(%(space)s, %(pipeline_id)s)

-- name: take
-- The number grows by a random step: a standby that was promoted may not know the last lease of the old primary, and
-- must not give its number to another run.
UPDATE rowvec.run_leases
SET number = number + 1 + floor(random() * 1000000)::bigint, held = true, seconds = %(seconds)s,
    machine = %(machine)s, pid = %(pid)s, started = %(started)s, taken_at = clock_timestamp()
WHERE pipeline_id = %(pipeline_id)s
RETURNING number

-- name: start_renewals
UPDATE rowvec.lease_renewals
SET number = %(number)s, renewals = 0, ends_at = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE pipeline_id = %(pipeline_id)s

-- name: renew -- no row if another run has the lease
UPDATE rowvec.lease_renewals
SET renewals = renewals + 1, ends_at = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE pipeline_id = %(pipeline_id)s AND number = %(number)s
RETURNING renewals

-- name: give_up
UPDATE rowvec.run_leases SET held = false WHERE pipeline_id = %(pipeline_id)s AND number = %(number)s

-- name: is_owner
SELECT EXISTS (SELECT FROM rowvec.run_leases WHERE pipeline_id = %(pipeline_id)s AND number = %(number)s AND held)

-- name: has_written -- whether this transaction has written anything but temporary tables of a read-only one
SELECT pg_current_xact_id_if_assigned() IS NOT NULL AND NOT current_setting('transaction_read_only')::bool

-- name: check -- the last statement of each transaction of a run that wrote something; no row if the lease is lost
-- The next owner waits for this lock, so none can begin between this check and the commit. If the owner's process is
-- stopped at this point, the server ends the transaction.
SELECT set_config('idle_in_transaction_session_timeout', '10s', true)
FROM rowvec.run_leases
WHERE pipeline_id = %(pipeline_id)s AND number = %(number)s AND held
FOR SHARE
