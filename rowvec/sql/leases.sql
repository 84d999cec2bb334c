-- name: account -- locks the account until the transaction ends; the rest that the provider asked for, in seconds from now
INSERT INTO rowvec.pace_accounts AS a (account, address, model, rest_until)
VALUES (%(account)s, %(address)s, %(model)s, clock_timestamp() + make_interval(secs => %(rest)s))
ON CONFLICT (account) DO UPDATE SET rest_until = greatest(a.rest_until, excluded.rest_until)
RETURNING greatest(0, extract(epoch FROM a.rest_until - clock_timestamp()))::double precision

-- name: others -- leases of other processes that have not expired; deletes the expired ones
WITH ended AS (DELETE FROM rowvec.pace_leases WHERE account = %(account)s AND expires_at <= clock_timestamp())
SELECT wanted, granted FROM rowvec.pace_leases
WHERE account = %(account)s AND holder <> %(holder)s AND expires_at > clock_timestamp()

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
