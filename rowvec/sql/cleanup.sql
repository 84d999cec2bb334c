-- name: family -- all generations of a pipeline, live or not
SELECT pipeline_id, name FROM rowvec.pipelines WHERE family = split_part(%(name)s, '.', 1) ORDER BY pipeline_id

-- name: unfinished -- runs that the ledger has as running; with the pipeline's lease held, they are dead
SELECT run_id FROM rowvec.runs WHERE pipeline_id = %(pipeline_id)s AND state = 'running' ORDER BY run_id
