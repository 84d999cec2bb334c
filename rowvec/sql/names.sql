-- name: rename -- all generations of a pipeline; the next manifest begins a chain under the new name
UPDATE rowvec.pipelines
SET name = %(new)s || substr(name, length(family) + 1),
    family = %(new)s,
    journal_whole = true,
    settings = jsonb_set(settings, '{{name}}', to_jsonb(%(new)s || substr(name, length(family) + 1)))
WHERE family = %(old)s

-- name: rename_spending -- the budget of a month goes on
UPDATE rowvec.spending SET family = %(new)s WHERE family = %(old)s

-- name: rename_erasures
UPDATE rowvec.erasures SET family = %(new)s WHERE family = %(old)s

-- name: forget_images -- what is left of an earlier pipeline of this name
DELETE FROM rowvec.images WHERE family = %(new)s

-- name: rename_images
UPDATE rowvec.images SET family = %(new)s WHERE family = %(old)s

-- name: images -- those that the store has
SELECT encode(sha256, 'hex'), media_type, bytes, place FROM rowvec.images
WHERE family = %(family)s AND uploaded_at IS NOT NULL

-- name: families -- all names in this database
SELECT DISTINCT family FROM rowvec.pipelines WHERE state <> 'dropped' ORDER BY 1

-- name: move_table -- the vector table was renamed, or will be made again under another name
UPDATE rowvec.pipelines
SET table_schema = %(schema)s, table_name = %(table)s, journal_whole = true,
    settings = jsonb_set(settings, '{{target,table}}', to_jsonb(%(written)s::text))
WHERE name = %(name)s

-- name: move_builds
UPDATE rowvec.index_builds SET table_schema = %(schema)s, table_name = %(table)s
WHERE table_schema = %(old_schema)s AND table_name = %(old_table)s

-- name: move_tunings
UPDATE rowvec.tunings SET table_schema = %(schema)s, table_name = %(table)s
WHERE table_schema = %(old_schema)s AND table_name = %(old_table)s

-- name: take_in -- no artifact of its vectors is known, so the next sync looks for them in the table before it pays
INSERT INTO rowvec.pipelines (name, family, state, table_schema, table_name, identity, artifacts_lost)
VALUES (%(name)s, %(name)s, 'live', %(schema)s, %(table)s, %(identity)s, true)

-- name: matching -- how many rows have the fingerprint of their own content, and how many there are
SELECT count(*) FILTER (WHERE t.fingerprint = sha256({identity}::bytea || convert_to(t.content, 'UTF8'))), count(*)
FROM {table} AS t
