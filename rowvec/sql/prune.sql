-- name: kept_manifests -- the newest one, and those of the runs that must stay restorable
SELECT manifest FROM rowvec.runs
WHERE pipeline_id = %(pipeline_id)s AND manifest IS NOT NULL
  AND (started_at >= now() - %(age)s
       OR run_id = (SELECT max(run_id) FROM rowvec.runs WHERE pipeline_id = %(pipeline_id)s AND manifest IS NOT NULL))
ORDER BY run_id DESC

-- name: since -- by the clock that the manifests have their time from, and not by that of the machine that prunes
SELECT now() - %(age)s

-- name: old_manifests -- those that no kept run needs, and the old ones of generations that were dropped
SELECT r.run_id, r.manifest
FROM rowvec.runs AS r
JOIN rowvec.pipelines AS p USING (pipeline_id)
WHERE r.manifest IS NOT NULL AND r.manifest <> ALL (%(kept)s)
  AND (r.pipeline_id = %(pipeline_id)s
       OR p.state = 'dropped' AND r.pipeline_id = ANY (rowvec.generations(%(pipeline_id)s))
       AND r.started_at < now() - %(age)s)
ORDER BY r.run_id

-- name: needed -- the fingerprints that the vector table has, or had after a restorable run
-- The vectors of rows that the database refuses are paid for too, and are needed when such a row is tried again.
CREATE UNLOGGED TABLE {needed} AS
SELECT DISTINCT fingerprint FROM {table}
UNION SELECT fingerprint FROM rowvec.rejects WHERE fingerprint IS NOT NULL

-- name: need_state
INSERT INTO {needed} SELECT DISTINCT fingerprint FROM {journal_state}

-- name: entry
CREATE UNLOGGED TABLE {entry_rows} ({columns})

-- name: copy_entry
COPY {entry_rows} FROM STDIN (FORMAT csv)

-- name: need_entry
INSERT INTO {needed} SELECT DISTINCT fingerprint FROM {entry_rows} WHERE fingerprint IS NOT NULL

-- name: drop_entry
DROP TABLE {entry_rows}

-- name: analyze_needed
ANALYZE {needed}

-- name: unneeded_artifacts -- old ones without a needed vector, and those of dropped generations
-- An artifact that no embedding points to stays if a kept manifest names it: a restore to that run reads it. The object
-- of a dropped generation stays if a generation that is kept has the same one.
SELECT a.pipeline_id, a.name, a.bytes
FROM rowvec.artifacts AS a
JOIN rowvec.pipelines AS p USING (pipeline_id)
WHERE a.created_at < now() - {age}
  -- An artifact that only the store says is ours may be another pipeline's.
  AND (a.batch >= 0 OR split_part(split_part(a.name, '/', 2), '.', 1) = p.family)
  AND NOT EXISTS (
      SELECT FROM rowvec.artifacts AS o JOIN rowvec.pipelines AS kept USING (pipeline_id)
      WHERE o.name = a.name AND o.pipeline_id <> a.pipeline_id AND kept.family = p.family AND kept.state <> 'dropped')
  AND (
      p.state = 'dropped' AND a.pipeline_id = ANY (rowvec.generations({pipeline_id}))
      OR a.pipeline_id = {pipeline_id}
      AND NOT EXISTS (
          SELECT FROM rowvec.embeddings AS e JOIN {needed} AS n USING (fingerprint) WHERE e.artifact_id = a.artifact_id)
      AND (a.name <> ALL ({kept}::text[])
           OR EXISTS (SELECT FROM rowvec.embeddings AS e WHERE e.artifact_id = a.artifact_id))
  )
ORDER BY a.artifact_id

-- name: count_artifacts
SELECT count(*) FROM rowvec.artifacts WHERE pipeline_id = %(pipeline_id)s

-- name: forget_manifest
UPDATE rowvec.runs SET manifest = NULL, manifest_sha256 = NULL WHERE run_id = %(run_id)s

-- name: small_artifacts
SELECT a.artifact_id, a.name, a.sha256, a.rows, a.bytes
FROM rowvec.artifacts AS a
WHERE a.pipeline_id = %(pipeline_id)s AND a.bytes < %(smaller_than)s
  AND EXISTS (SELECT FROM rowvec.embeddings AS e WHERE e.artifact_id = a.artifact_id)
ORDER BY a.artifact_id

-- name: held_by
SELECT fingerprint FROM rowvec.embeddings WHERE artifact_id = %(artifact_id)s

-- name: add_artifact
INSERT INTO rowvec.artifacts (pipeline_id, run_id, last_run_id, batch, name, sha256, rows, bytes)
VALUES (%(pipeline_id)s, %(run_id)s, %(run_id)s, %(batch)s, %(name)s, %(sha256)s, %(rows)s, %(bytes)s)
ON CONFLICT (pipeline_id, name) DO UPDATE SET last_run_id = excluded.last_run_id
RETURNING artifact_id

-- name: repoint -- the vectors are in the large artifact now; the run that paid for them stays the same
UPDATE rowvec.embeddings SET artifact_id = %(artifact_id)s
WHERE pipeline_id = %(pipeline_id)s AND artifact_id = ANY (%(small)s)
