-- name: account -- locks the account until the transaction ends; the rest that the provider asked for, in seconds from now
INSERT INTO rowvec.pace_accounts AS a (account, address, model, rest_until)
VALUES (%(account)s, %(address)s, %(model)s, clock_timestamp() + make_interval(secs => %(rest)s))
ON CONFLICT (account) DO UPDATE
-- A rest that is longer than any is of a clock that was ahead: a standby with another clock has taken over since.
SET rest_until = greatest(
    CASE WHEN a.rest_until <= clock_timestamp() + make_interval(secs => %(longest)s) THEN a.rest_until END,
    excluded.rest_until)
RETURNING greatest(0, extract(epoch FROM a.rest_until - clock_timestamp()))::double precision

-- name: others -- leases of other processes that have not expired; deletes the expired ones
-- One that ends later than any can end is of a clock that was ahead; its process renews it, if it is still there.
WITH ended AS (
    DELETE FROM rowvec.pace_leases
    WHERE account = %(account)s
      AND expires_at NOT BETWEEN clock_timestamp() AND clock_timestamp() + make_interval(secs => 2 * %(seconds)s))
SELECT wanted, granted FROM rowvec.pace_leases
WHERE account = %(account)s AND holder <> %(holder)s
  AND expires_at BETWEEN clock_timestamp() AND clock_timestamp() + make_interval(secs => 2 * %(seconds)s)

-- name: renew -- takes a lease, or extends it
INSERT INTO rowvec.pace_leases (account, holder, process, wanted, granted, expires_at)
VALUES (
    %(account)s, %(holder)s, %(process)s, %(wanted)s, %(granted)s,
    clock_timestamp() + make_interval(secs => %(seconds)s)
)
ON CONFLICT (account, holder) DO UPDATE
SET wanted = excluded.wanted, granted = excluded.granted, expires_at = excluded.expires_at

-- name: leave -- returns a lease
DELETE FROM rowvec.pace_leases WHERE account = %(account)s AND holder = %(holder)s
