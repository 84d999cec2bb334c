-- name: create -- a run's batches until the merge; logged, because a first load becomes the vector table itself
CREATE TABLE {name} ({columns})

-- name: create_unlogged -- staging that the merge copies: a crash may lose it, because artifacts hold the rows too
CREATE UNLOGGED TABLE {name} ({columns})

-- name: forget_staging
DROP TABLE IF EXISTS {name}

-- name: forget_batches -- a run that plans again loads its batches 0, 1, … again
DELETE FROM rowvec.loaded WHERE run_id = %(run_id)s

-- name: claim -- mark and rows are one transaction, so each batch is loaded only once; returns the time
INSERT INTO rowvec.loaded (run_id, batch, rows) VALUES (%(run_id)s, %(batch)s, 0)
ON CONFLICT DO NOTHING
RETURNING (extract(epoch FROM now() - '2000-01-01 00:00:00+00'::timestamptz) * 1000000)::bigint

-- name: mark
UPDATE rowvec.loaded SET rows = %(rows)s WHERE run_id = %(run_id)s AND batch = %(batch)s

-- name: loaded_rows
SELECT rows FROM rowvec.loaded WHERE run_id = %(run_id)s AND batch = %(batch)s

-- name: copy
COPY {table} ({columns}) FROM STDIN (FORMAT binary)

-- name: same_value
s.{column}::{type} = {value}::{type}

-- name: pipeline_of_run
(SELECT pipeline_id FROM rowvec.runs WHERE run_id = {run_id})
