-- name: lock -- one reservation at a time reads the sums; held to the end of the transaction
SELECT pg_advisory_xact_lock(%(space)s, hashtext(%(family)s))

-- name: spent -- by the run, and by all runs of this month, including reservations
SELECT
    coalesce(sum(settled_usd + reserved_usd) FILTER (WHERE run_id = %(run_id)s), 0),
    coalesce(sum(settled_usd + reserved_usd) FILTER (WHERE month = date_trunc('month', now() AT TIME ZONE 'UTC')), 0)
FROM rowvec.spending
WHERE family = %(family)s
  AND (run_id = %(run_id)s OR month = date_trunc('month', now() AT TIME ZONE 'UTC'))

-- name: reserve
INSERT INTO rowvec.spending AS s (family, month, run_id, reserved_usd)
VALUES (%(family)s, date_trunc('month', now() AT TIME ZONE 'UTC'), %(run_id)s, %(usd)s)
ON CONFLICT (family, month, run_id) DO UPDATE SET reserved_usd = s.reserved_usd + excluded.reserved_usd
RETURNING month

-- name: settle -- replaces a reservation by the cost, in the month of the reservation
INSERT INTO rowvec.spending AS s (family, month, run_id, settled_usd)
VALUES (%(family)s, coalesce(%(month)s, date_trunc('month', now() AT TIME ZONE 'UTC')::date), %(run_id)s, %(usd)s)
ON CONFLICT (family, month, run_id) DO UPDATE
SET settled_usd = s.settled_usd + excluded.settled_usd,
    -- A difference of float sums may not be exactly zero.
    reserved_usd = CASE WHEN s.reserved_usd - %(held)s > 1e-9 THEN s.reserved_usd - %(held)s ELSE 0 END

-- name: sum_up -- what runs have spent that the ledger has no more, in one row per month without a run
WITH gone AS (
    DELETE FROM rowvec.spending AS s USING rowvec.pipelines AS p
    WHERE p.pipeline_id = {pipeline_id} AND s.family = p.family AND s.run_id <> 0
      AND NOT EXISTS (SELECT FROM rowvec.runs AS r WHERE r.run_id = s.run_id)
    RETURNING s.family, s.month, s.settled_usd, s.reserved_usd
)
INSERT INTO rowvec.spending AS s (family, month, run_id, settled_usd, reserved_usd)
SELECT family, month, 0, sum(settled_usd), sum(reserved_usd) FROM gone GROUP BY family, month
ON CONFLICT (family, month, run_id) DO UPDATE
SET settled_usd = s.settled_usd + excluded.settled_usd, reserved_usd = s.reserved_usd + excluded.reserved_usd
