-- name: of_family -- the manifests of all generations, and whether each is of the generation of this name; newest first
SELECT r.manifest, r.manifest_sha256, p.name = %(name)s::text
FROM rowvec.runs AS r
JOIN rowvec.pipelines AS p USING (pipeline_id)
WHERE p.family = split_part(%(name)s::text, '.'::text, 1) AND r.manifest IS NOT NULL
ORDER BY r.run_id DESC

-- name: last_ones -- the last manifest of this generation and of the live one, unless the next one names every row anyway
SELECT DISTINCT ON (r.pipeline_id)
    r.manifest, r.manifest_sha256, r.run_id, p.state = 'live',
    to_regclass(format('%%I.%%I'::text, p.table_schema, p.table_name)) IS NOT NULL
FROM rowvec.runs AS r
JOIN rowvec.pipelines AS p USING (pipeline_id)
WHERE p.family = split_part(%(name)s::text, '.'::text, 1) AND (p.name = %(name)s::text OR p.state = 'live')
  AND r.manifest IS NOT NULL AND NOT p.journal_whole
ORDER BY r.pipeline_id, r.run_id DESC

-- name: forget -- manifests that the store has lost
UPDATE rowvec.runs SET manifest = NULL, manifest_sha256 = NULL WHERE manifest = ANY (%(manifests)s::text[])
