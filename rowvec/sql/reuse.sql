-- name: add_artifact -- equal rows give equal bytes, so several runs may write the same artifact
INSERT INTO rowvec.artifacts (pipeline_id, run_id, last_run_id, batch, name, sha256, rows, bytes)
VALUES (%(pipeline_id)s, %(run_id)s, %(run_id)s, %(batch)s, %(name)s, %(sha256)s, %(rows)s, %(bytes)s)
ON CONFLICT (pipeline_id, name) DO UPDATE SET last_run_id = excluded.last_run_id, batch = excluded.batch
RETURNING artifact_id

-- name: add_embeddings -- a fingerprint keeps its first artifact, and the run that paid for it
INSERT INTO rowvec.embeddings (pipeline_id, fingerprint, artifact_id, run_id, cost_usd)
SELECT
    %(pipeline_id)s, f.fingerprint, %(artifact_id)s,
    coalesce(a.run_id, %(run_id)s), coalesce(a.tokens * a.price_share, 0) * %(usd_per_token)s
FROM unnest(%(fingerprints)s::bytea[]) AS f (fingerprint)
-- The limit keeps the planner from reading all of a table whose statistics are those of a large run.
LEFT JOIN LATERAL (
    SELECT * FROM rowvec.answers AS a WHERE a.pipeline_id = %(pipeline_id)s AND a.fingerprint = f.fingerprint LIMIT 1
) AS a ON true
ON CONFLICT (pipeline_id, fingerprint) DO NOTHING

-- name: forget_answers -- their vectors are in an artifact now
DELETE FROM rowvec.answers WHERE pipeline_id = %(pipeline_id)s AND fingerprint = ANY (%(fingerprints)s)

-- name: artifacts_of_run
SELECT name, sha256, rows, bytes FROM rowvec.artifacts WHERE last_run_id = %(run_id)s AND batch >= 0 ORDER BY batch

-- name: known_in_artifacts
SELECT DISTINCT ON (e.fingerprint) e.fingerprint, a.name, a.sha256, a.rows, a.bytes
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

-- name: has_artifacts
SELECT EXISTS (SELECT FROM rowvec.artifacts WHERE pipeline_id = %(pipeline_id)s)

-- name: relies_on_table -- without a known artifact, or after a lost one, a vector may be only in the table
SELECT artifacts_lost OR NOT EXISTS (SELECT FROM rowvec.artifacts WHERE pipeline_id = %(pipeline_id)s)
FROM rowvec.pipelines WHERE pipeline_id = %(pipeline_id)s

-- name: set_lost
UPDATE rowvec.pipelines SET artifacts_lost = %(lost)s WHERE pipeline_id = %(pipeline_id)s

-- name: forget_artifact
DELETE FROM rowvec.artifacts WHERE pipeline_id = %(pipeline_id)s AND name = %(name)s

-- name: identities -- of all generations of the pipeline
SELECT identity FROM rowvec.pipelines WHERE pipeline_id = ANY (rowvec.generations(%(pipeline_id)s))

-- name: paid_for -- by any generation, also as a longer vector that can be cut to these dimensions
-- The generations are looked up once, and not for each row.
(
    EXISTS (
        SELECT FROM rowvec.embeddings AS e
        WHERE e.pipeline_id = ANY ((SELECT rowvec.generations({pipeline_id}))::int[]) AND e.fingerprint = p.fingerprint)
    OR EXISTS (
        SELECT FROM rowvec.answers AS a
        WHERE a.pipeline_id = ANY ((SELECT rowvec.generations({pipeline_id}))::int[]) AND a.fingerprint = p.fingerprint)
    OR EXISTS (
        SELECT FROM unnest({longer}::bytea[]) AS longer (digest)
        JOIN rowvec.embeddings AS e
          ON e.pipeline_id = ANY ((SELECT rowvec.generations({pipeline_id}))::int[])
         AND e.fingerprint = sha256(longer.digest || convert_to(coalesce(p.content, ''), 'UTF8')))
)
