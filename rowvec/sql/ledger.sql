-- name: register -- the pipeline's row, made when missing; its table may have moved, its embedder changed
-- A name with a dot is that of a generation that is not, or no longer, the one that is read.
INSERT INTO rowvec.pipelines AS p (name, family, generation, state, table_schema, table_name, identity, settings)
VALUES (
    %(name)s,
    split_part(%(name)s, '.', 1),
    coalesce(nullif(split_part(%(name)s, '.', 2), '')::int, 1),
    CASE WHEN %(name)s LIKE '%%.%%' THEN 'building' ELSE 'live' END,
    %(schema)s, %(table)s, %(identity)s, %(settings)s
)
ON CONFLICT (name) DO UPDATE
SET table_schema = excluded.table_schema, table_name = excluded.table_name, identity = excluded.identity,
    settings = coalesce(p.settings, excluded.settings)
RETURNING pipeline_id

-- name: keep_settings -- once the vector table was found to be laid out by them
UPDATE rowvec.pipelines SET settings = %(settings)s WHERE pipeline_id = %(pipeline_id)s

-- name: registered -- what the vector table's vectors come from, if the pipeline's table is there
SELECT identity FROM rowvec.pipelines
WHERE name = %(name)s AND table_schema = %(schema)s AND table_name = %(table)s
  AND to_regclass(%(regclass)s) IS NOT NULL

-- name: readable -- whether the ledger has a column, and this role may read it: one that only searches may not
SELECT EXISTS (
    SELECT FROM pg_attribute AS a
    JOIN pg_class AS c ON c.oid = a.attrelid
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'rowvec' AND c.relname = %(table)s AND a.attname = %(column)s
      AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))

-- name: find -- the pipeline's id
SELECT pipeline_id FROM rowvec.pipelines WHERE name = %(name)s

-- name: identity
SELECT identity FROM rowvec.pipelines WHERE pipeline_id = %(pipeline_id)s

-- name: start
INSERT INTO rowvec.runs (pipeline_id, cause, state) VALUES (%(pipeline_id)s, %(cause)s, %(state)s) RETURNING run_id

-- name: number_above
SELECT setval(sequence, %(number)s)
FROM pg_get_serial_sequence('rowvec.runs', 'run_id') AS sequence
WHERE %(number)s > (SELECT coalesce(max(run_id), 0) FROM rowvec.runs)

-- name: finish
UPDATE rowvec.runs
SET state = %(state)s, finished_at = now(), error = %(error)s,
    report = coalesce(%(report)s, report), checks = coalesce(%(checks)s, checks),
    manifest = coalesce(%(manifest)s, manifest), manifest_sha256 = coalesce(%(manifest_sha256)s, manifest_sha256)
WHERE run_id = %(run_id)s

-- name: abandoned -- earlier runs and plans of this pipeline that nobody will finish: only the lock's holder may ask
UPDATE rowvec.runs SET state = 'abandoned', finished_at = now()
WHERE pipeline_id = %(pipeline_id)s AND run_id <> %(run_id)s
  AND CASE state WHEN 'running' THEN true
                 WHEN 'planned' THEN pg_try_advisory_xact_lock(%(space)s, run_id::int) ELSE false END

-- name: family -- all generations of a pipeline, whichever of them is read
SELECT pipeline_id, name FROM rowvec.pipelines WHERE family = split_part(%(name)s, '.', 1) ORDER BY pipeline_id

-- name: unfinished -- runs that are said to be at work; only the lock's holder knows that they are not
SELECT run_id FROM rowvec.runs WHERE pipeline_id = %(pipeline_id)s AND state = 'running' ORDER BY run_id

-- name: supersede -- plans that nobody asked a run of, when a new one is asked for
UPDATE rowvec.runs SET state = 'abandoned', finished_at = now()
WHERE pipeline_id = %(pipeline_id)s AND run_id <> %(run_id)s
  AND CASE state WHEN 'planned' THEN pg_try_advisory_xact_lock(%(space)s, run_id::int) ELSE false END

-- name: start_plan -- locked before anybody can see it: who clears up leaves a plan alone whose command is at work
INSERT INTO rowvec.runs (pipeline_id, cause, state) VALUES (%(pipeline_id)s, 'plan', 'planned')
RETURNING run_id, pg_try_advisory_lock(%(space)s, run_id::int)

-- name: leftovers -- plan and staging tables of runs that are over
SELECT c.relname
FROM pg_class AS c
JOIN rowvec.runs AS r ON c.relname IN ('plan_' || r.run_id, 'staging_' || r.run_id)
WHERE c.relnamespace = 'rowvec'::regnamespace AND r.pipeline_id = %(pipeline_id)s AND r.run_id <> %(run_id)s
  AND r.state NOT IN ('planned', 'running')

-- name: drop
DROP TABLE IF EXISTS {table}

-- name: lock -- one run a pipeline: held by the session, so that a killed run lets go of it
SELECT pg_advisory_lock(%(space)s, %(pipeline_id)s)

-- name: lock_patience -- the session of a run that was killed a moment ago may not have noticed yet
SET lock_timeout = '3s'

-- name: unlock
SELECT pg_advisory_unlock(%(space)s, %(pipeline_id)s)

-- name: add_artifact -- equal rows give equal bytes: the same artifact may be of several runs
INSERT INTO rowvec.artifacts (pipeline_id, run_id, last_run_id, batch, name, sha256, rows, bytes)
VALUES (%(pipeline_id)s, %(run_id)s, %(run_id)s, %(batch)s, %(name)s, %(sha256)s, %(rows)s, %(bytes)s)
ON CONFLICT (pipeline_id, name) DO UPDATE SET last_run_id = excluded.last_run_id, batch = excluded.batch
RETURNING artifact_id

-- name: add_embeddings -- a fingerprint keeps the artifact that held it first, and the run that paid for it
INSERT INTO rowvec.embeddings (pipeline_id, fingerprint, artifact_id, run_id, cost_usd)
SELECT
    %(pipeline_id)s, f.fingerprint, %(artifact_id)s,
    coalesce(a.run_id, %(run_id)s), coalesce(a.tokens * a.price_share, 0) * %(usd_a_token)s
FROM unnest(%(fingerprints)s::bytea[]) AS f (fingerprint)
LEFT JOIN rowvec.answers AS a ON a.pipeline_id = %(pipeline_id)s AND a.fingerprint = f.fingerprint
ON CONFLICT (pipeline_id, fingerprint) DO NOTHING

-- name: forget_answers -- their vectors are in an artifact now
DELETE FROM rowvec.answers WHERE pipeline_id = %(pipeline_id)s AND fingerprint = ANY (%(fingerprints)s)

-- name: artifacts_of_run
SELECT name, sha256, rows, bytes FROM rowvec.artifacts WHERE last_run_id = %(run_id)s ORDER BY batch

-- name: known_in_artifacts
SELECT DISTINCT ON (e.fingerprint) e.fingerprint, a.name, a.sha256
FROM rowvec.embeddings AS e
JOIN rowvec.artifacts AS a USING (artifact_id)
WHERE e.pipeline_id = ANY (rowvec.generations(%(pipeline_id)s)) AND e.fingerprint = ANY (%(fingerprints)s)
ORDER BY e.fingerprint, e.pipeline_id <> %(pipeline_id)s

-- name: known_answers
SELECT fingerprint, embedding FROM rowvec.answers
WHERE pipeline_id = ANY (rowvec.generations(%(pipeline_id)s)) AND fingerprint = ANY (%(fingerprints)s)

-- name: keep_answers
INSERT INTO rowvec.answers (pipeline_id, fingerprint, embedding, run_id, tokens, price_share)
SELECT %(pipeline_id)s, fingerprint, embedding, %(run_id)s, %(tokens)s, %(price_share)s
FROM unnest(%(fingerprints)s::bytea[], %(embeddings)s::bytea[]) AS a (fingerprint, embedding)
ON CONFLICT (pipeline_id, fingerprint) DO NOTHING

-- name: known_in_table
SELECT DISTINCT ON (fingerprint) fingerprint, {send}(embedding)
FROM {table} WHERE fingerprint = ANY ({fingerprints}::bytea[]) AND embedding IS NOT NULL

-- name: has_artifacts
SELECT EXISTS (SELECT FROM rowvec.artifacts WHERE pipeline_id = %(pipeline_id)s)

-- name: relies_on_table -- no artifact is known, or one was lost: then the table may be the only place a vector is in
SELECT artifacts_lost OR NOT EXISTS (SELECT FROM rowvec.artifacts WHERE pipeline_id = %(pipeline_id)s)
FROM rowvec.pipelines WHERE pipeline_id = %(pipeline_id)s

-- name: set_lost
UPDATE rowvec.pipelines SET artifacts_lost = %(lost)s WHERE pipeline_id = %(pipeline_id)s

-- name: forget_artifact
DELETE FROM rowvec.artifacts WHERE pipeline_id = %(pipeline_id)s AND name = %(name)s
