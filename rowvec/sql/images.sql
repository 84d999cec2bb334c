-- name: note -- the images of rows that are new or changed; where each was last seen, and what the store has, stays
INSERT INTO rowvec.images AS known (family, sha256, media_type, bytes, place)
SELECT DISTINCT ON (sha256) {family}, decode(sha256, 'hex'), media_type, bytes, place
FROM unnest({sha256s}::text[], {media_types}::text[], {sizes}::bigint[], {places}::text[])
    AS seen (sha256, media_type, bytes, place)
ORDER BY sha256
ON CONFLICT (family, sha256) DO UPDATE
SET media_type = excluded.media_type, bytes = excluded.bytes, place = excluded.place, noted_at = now()

-- name: to_upload -- images of a batch that the store is not known to have
SELECT encode(i.sha256, 'hex'), i.media_type, i.bytes, i.place
FROM rowvec.images AS i
WHERE i.family = {family} AND i.uploaded_at IS NULL AND i.sha256 > {after}
  AND EXISTS (
      SELECT FROM {plan} AS p
      WHERE p.rowvec_batch = {batch} AND p.content = 'sha256:' || encode(i.sha256, 'hex'))
ORDER BY i.sha256
LIMIT {limit}

-- name: count_to_upload
SELECT count(*)
FROM rowvec.images AS i
WHERE i.family = {family} AND i.uploaded_at IS NULL
  AND EXISTS (
      SELECT FROM {plan} AS p
      WHERE p.rowvec_batch = {batch} AND p.content = 'sha256:' || encode(i.sha256, 'hex'))

-- name: uploaded
UPDATE rowvec.images SET uploaded_at = now()
WHERE family = %(family)s AND sha256 = ANY (SELECT decode(s, 'hex') FROM unnest(%(sha256s)s::text[]) AS s)

-- name: known
SELECT encode(sha256, 'hex'), media_type, bytes, place FROM rowvec.images
WHERE family = %(family)s AND sha256 = ANY (SELECT decode(s, 'hex') FROM unnest(%(sha256s)s::text[]) AS s)

-- name: shown -- the images that the vector tables of all generations show
CREATE TEMP TABLE shown_images (sha256 bytea NOT NULL)

-- name: show
INSERT INTO shown_images
SELECT DISTINCT decode(substr(content, 8), 'hex') FROM {table} WHERE content ~ '^sha256:[0-9a-f]{{64}}$'

-- name: tables -- of the generations that were not dropped
SELECT table_schema, table_name FROM rowvec.pipelines
WHERE family = %(family)s AND state <> 'dropped'
  AND to_regclass(format('%%I.%%I', table_schema, table_name)) IS NOT NULL

-- name: unneeded -- no table shows them, no run that is kept did, and no row has come with them since
SELECT encode(i.sha256, 'hex'), i.media_type, i.bytes, i.place
FROM rowvec.images AS i
WHERE i.family = {family} AND i.noted_at < now() - {age}
  AND NOT EXISTS (SELECT FROM shown_images AS s WHERE s.sha256 = i.sha256)
  AND NOT EXISTS (
      SELECT FROM needed AS n
      WHERE n.fingerprint = sha256({identity}::bytea || convert_to('sha256:' || encode(i.sha256, 'hex'), 'UTF8')))
ORDER BY i.sha256

-- name: forget
DELETE FROM rowvec.images
WHERE family = %(family)s AND sha256 = ANY (SELECT decode(s, 'hex') FROM unnest(%(sha256s)s::text[]) AS s)
