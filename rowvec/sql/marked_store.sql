-- name: may_know_server
SELECT has_function_privilege('pg_catalog.pg_control_system()'::text, 'EXECUTE'::text)

-- name: server
SELECT system_identifier::text FROM pg_catalog.pg_control_system()

-- name: own -- the ledger's id for a pipeline's store; another one if this database is a copy of the one that had it
INSERT INTO rowvec.stores AS s (family, server, database)
SELECT %(family)s::text, %(server)s::text, d.oid FROM pg_catalog.pg_database AS d WHERE d.datname = current_database()
ON CONFLICT (family) DO UPDATE
SET server = coalesce(excluded.server, s.server), database = excluded.database,
    ledger = CASE WHEN s.database = excluded.database AND coalesce(s.server = excluded.server, true)
                  THEN s.ledger ELSE gen_random_uuid() END
RETURNING ledger::text, current_database()::text, clock_timestamp()

-- name: remembered -- the id that the ledger has, whether it is a copy or not
SELECT ledger::text FROM rowvec.stores WHERE family = %(family)s::text

-- name: as_it_is -- the id that own would give, unless it would give a new one
SELECT s.ledger::text
FROM rowvec.stores AS s JOIN pg_catalog.pg_database AS d ON d.oid = s.database AND d.datname = current_database()
WHERE s.family = %(family)s AND coalesce(s.server = %(server)s::text, true)

-- name: another_id -- the ledger was set back: another id, as its old one belongs to what it was
UPDATE rowvec.stores SET ledger = gen_random_uuid() WHERE family = %(family)s RETURNING ledger::text

-- name: is_known -- whether the ledger knows a manifest, or that a run may have left it
-- Of any pipeline: what was written under a name that was changed since is known too.
SELECT EXISTS (SELECT FROM rowvec.runs AS r WHERE r.manifest = %(manifest)s::text)
    OR EXISTS (SELECT FROM rowvec.stores WHERE %(manifest)s::text = ANY (superseded))

-- name: superseded
SELECT superseded FROM rowvec.stores WHERE family = %(family)s::text

-- name: supersede -- before a manifest is written, and for those that are given up
UPDATE rowvec.stores
SET superseded = ARRAY(SELECT DISTINCT name FROM unnest(superseded || %(manifests)s::text[]) AS u (name) ORDER BY name)
WHERE family = %(family)s::text

-- name: settle -- a manifest whose run has ended, or manifests that are deleted
UPDATE rowvec.stores
SET superseded = ARRAY(
    SELECT name FROM unnest(superseded) AS u (name) WHERE name <> ALL (%(manifests)s::text[]) ORDER BY name)
WHERE family = %(family)s::text

-- name: newest_of_others -- the last manifests in this folder of other generations, and of a pipeline that had the name
SELECT DISTINCT ON (r.pipeline_id) r.manifest
FROM rowvec.runs AS r
WHERE r.pipeline_id <> %(pipeline_id)s AND starts_with(r.manifest, %(folder)s::text)
ORDER BY r.pipeline_id, r.run_id DESC

-- name: known_artifacts
SELECT a.name FROM rowvec.artifacts AS a
WHERE a.pipeline_id = ANY (rowvec.generations(%(pipeline_id)s)) AND a.name = ANY (%(names)s::text[])

-- name: artifacts_of_any -- those that the ledger has, also of a pipeline that had the name before
SELECT name FROM rowvec.artifacts WHERE name = ANY (%(names)s::text[])

-- name: take_in -- an artifact that the store has and the ledger did not know; no batch of the run
INSERT INTO rowvec.artifacts (pipeline_id, run_id, last_run_id, batch, name, sha256, rows, bytes)
VALUES (%(pipeline_id)s, %(run_id)s, %(run_id)s, -1, %(name)s, %(sha256)s, %(rows)s, %(bytes)s)
ON CONFLICT (pipeline_id, name) DO UPDATE SET last_run_id = rowvec.artifacts.last_run_id
RETURNING artifact_id

-- name: take_in_embeddings -- how many were not known
WITH added AS (
    INSERT INTO rowvec.embeddings (pipeline_id, fingerprint, artifact_id, run_id)
    SELECT DISTINCT %(pipeline_id)s::int, f.fingerprint, %(artifact_id)s::bigint, %(run_id)s::bigint
    FROM unnest(%(fingerprints)s::bytea[]) AS f (fingerprint)
    ON CONFLICT (pipeline_id, fingerprint) DO NOTHING
    RETURNING 1
), settled AS (
    -- As after an upload: their vectors are in an artifact now.
    DELETE FROM rowvec.answers WHERE pipeline_id = %(pipeline_id)s AND fingerprint = ANY (%(fingerprints)s::bytea[])
)
SELECT count(*) FROM added
