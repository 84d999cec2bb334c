-- name: of_family -- the manifests of all generations, and whether each is of the generation of this name; newest first
SELECT r.manifest, r.manifest_sha256, p.name = %(name)s::text
FROM rowvec.runs AS r
JOIN rowvec.pipelines AS p USING (pipeline_id)
WHERE p.family = split_part(%(name)s::text, '.'::text, 1) AND r.manifest IS NOT NULL
ORDER BY r.run_id DESC
