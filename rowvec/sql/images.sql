-- name: note -- the images of new and changed rows, with the place where each was last seen; uploads stay noted
-- The source's size of an image is the right one: a restore may have noted an object that was cut short in the store.
INSERT INTO rowvec.images AS known (family, sha256, media_type, bytes, place)
SELECT DISTINCT ON (sha256) {family}, decode(sha256, 'hex'), media_type, bytes, place
FROM unnest({sha256s}::text[], {media_types}::text[], {sizes}::bigint[], {places}::text[])
    AS seen (sha256, media_type, bytes, place)
ORDER BY sha256
ON CONFLICT (family, sha256) DO UPDATE
SET media_type = excluded.media_type, bytes = excluded.bytes, place = excluded.place, noted_at = now(),
    uploaded_at = CASE
        WHEN (known.media_type, known.bytes) = (excluded.media_type, excluded.bytes) THEN known.uploaded_at
    END

-- name: to_upload -- images of the chosen rows that are not known to be in the store
SELECT encode(i.sha256, 'hex'), i.media_type, i.bytes, i.place
FROM rowvec.images AS i
WHERE i.family = {family} AND i.uploaded_at IS NULL AND i.sha256 > {after} AND {shown}
ORDER BY i.sha256
LIMIT {limit}

-- name: count_to_upload
SELECT count(*) FROM rowvec.images AS i WHERE i.family = {family} AND i.uploaded_at IS NULL AND {shown}

-- name: in_batch -- IS TRUE keeps this a hashed subplan. The tables have no statistics yet, so the planner would join
-- them by a nested loop, which compares each image with each row of the batch
(i.sha256 IN (SELECT decode(substr(p.content, 8), 'hex') FROM {plan} AS p WHERE p.rowvec_batch = {batch})) IS TRUE

-- name: in_table -- needs the blocks shown and show before
EXISTS (SELECT FROM {shown_images} AS s WHERE s.sha256 = i.sha256)

-- name: uploaded
UPDATE rowvec.images SET uploaded_at = now()
WHERE family = %(family)s AND sha256 = ANY (SELECT decode(s, 'hex') FROM unnest(%(sha256s)s::text[]) AS s)

-- name: known
SELECT encode(sha256, 'hex'), media_type, bytes, place FROM rowvec.images
WHERE family = %(family)s AND sha256 = ANY (SELECT decode(s, 'hex') FROM unnest(%(sha256s)s::text[]) AS s)

-- name: shown -- a table for the images that vector tables show; the block show fills it
DROP TABLE IF EXISTS {shown_images};
CREATE UNLOGGED TABLE {shown_images} (sha256 bytea NOT NULL)

-- name: show
INSERT INTO {shown_images}
SELECT DISTINCT decode(substr(content, 8), 'hex') FROM {table} WHERE content ~ '^sha256:[0-9a-f]{{64}}$'

-- name: tables -- of the generations that were not dropped
SELECT table_schema, table_name FROM rowvec.pipelines
WHERE family = %(family)s AND state <> 'dropped'
  AND to_regclass(format('%%I.%%I', table_schema, table_name)) IS NOT NULL

-- name: now -- an image uploaded after this time may be missing from a listing that began before it
SELECT now()

-- name: kept -- a table for a listing of the store; the block keep fills it
DROP TABLE IF EXISTS {kept_images};
CREATE UNLOGGED TABLE {kept_images} (sha256 bytea NOT NULL, media_type text NOT NULL, bytes bigint NOT NULL, name text NOT NULL)

-- name: keep
INSERT INTO {kept_images}
SELECT decode(sha256, 'hex'), media_type, bytes, name
FROM unnest(%(sha256s)s::text[], %(media_types)s::text[], %(sizes)s::bigint[], %(names)s::text[])
    AS k (sha256, media_type, bytes, name)

-- name: analyze_kept
ANALYZE {kept_images}

-- name: forget_lost -- images noted as uploaded that the store lacks or has cut short: they must be uploaded again
UPDATE rowvec.images AS i SET uploaded_at = NULL
WHERE i.family = %(family)s AND i.uploaded_at < %(listed_at)s
  AND NOT EXISTS (
      SELECT FROM {kept_images} AS k
      WHERE (k.sha256, k.media_type, k.bytes) = (i.sha256, i.media_type, i.bytes))

-- name: wanting -- of the images that rows show: how many are not known to be in the store, and how many are known
-- only from a restore, which noted the size that it found in the store
SELECT
    count(*) FILTER (WHERE i.uploaded_at IS NULL),
    count(*) FILTER (WHERE i.place LIKE 'images/%%/' || encode(i.sha256, 'hex') || '.%%')
FROM {shown_images} AS s
LEFT JOIN rowvec.images AS i ON i.family = %(family)s AND i.sha256 = s.sha256

-- name: wanting_keys
SELECT {key_json}::text FROM {table} AS t
WHERE t.content ~ '^sha256:[0-9a-f]{{64}}$' AND NOT EXISTS (
    SELECT FROM rowvec.images AS i
    WHERE i.family = {family} AND i.sha256 = decode(substr(t.content, 8), 'hex') AND i.uploaded_at IS NOT NULL)
LIMIT {limit}

-- name: lost -- for an audit: images that must be in the store and are missing or have another size; with their count
SELECT encode(l.sha256, 'hex'), l.media_type, l.bytes, l.found, count(*) OVER ()
FROM (
    SELECT i.sha256, i.media_type, i.bytes, k.bytes AS found
    FROM rowvec.images AS i
    LEFT JOIN {kept_images} AS k USING (sha256, media_type)
    WHERE i.family = %(family)s AND i.uploaded_at < %(listed_at)s AND i.bytes IS DISTINCT FROM k.bytes
    UNION ALL
    SELECT s.sha256, NULL, NULL, NULL
    FROM {shown_images} AS s
    WHERE NOT EXISTS (SELECT FROM {kept_images} AS k WHERE k.sha256 = s.sha256)
      AND NOT EXISTS (
          SELECT FROM rowvec.images AS i
          WHERE i.family = %(family)s AND i.sha256 = s.sha256 AND i.uploaded_at IS NOT NULL)
) AS l
ORDER BY l.sha256
LIMIT %(limit)s

-- name: take_in -- what a restore finds in the store; an image that the ledger knows only if it has the same size
INSERT INTO rowvec.images AS known (family, sha256, media_type, bytes, place, uploaded_at)
SELECT %(family)s, sha256, media_type, bytes, name, now() FROM {kept_images}
ON CONFLICT (family, sha256) DO UPDATE SET uploaded_at = coalesce(known.uploaded_at, excluded.uploaded_at)
WHERE (known.media_type, known.bytes) = (excluded.media_type, excluded.bytes)
