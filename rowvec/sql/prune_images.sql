-- name: unneeded -- no table shows them, no restorable run showed them, and no row has come with them since
SELECT encode(i.sha256, 'hex'), i.media_type, i.bytes, i.place
FROM rowvec.images AS i
WHERE i.family = {family} AND i.noted_at < now() - {age}
  AND NOT EXISTS (SELECT FROM {shown_images} AS s WHERE s.sha256 = i.sha256)
  AND NOT EXISTS (
      SELECT FROM {needed} AS n
      WHERE n.fingerprint = sha256({identity}::bytea || convert_to('sha256:' || encode(i.sha256, 'hex'), 'UTF8')))
ORDER BY i.sha256

-- name: forget
DELETE FROM rowvec.images
WHERE family = %(family)s AND sha256 = ANY (SELECT decode(s, 'hex') FROM unnest(%(sha256s)s::text[]) AS s)
