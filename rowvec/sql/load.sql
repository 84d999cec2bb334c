-- name: create -- where a run's batches wait for the merge; logged, for a first load becomes the vector table itself
CREATE TABLE {name} ({columns})

-- name: create_unlogged -- staging that is copied on at the merge: a crash may lose it, its artifacts are elsewhere
CREATE UNLOGGED TABLE {name} ({columns})

-- name: forget_staging
DROP TABLE IF EXISTS {name}

-- name: forget_batches -- a run that plans anew loads its batches 0, 1, … anew
DELETE FROM rowvec.loaded WHERE run_id = %(run_id)s

-- name: claim -- the mark and the rows are one transaction: a batch is loaded once, whoever tries again; gives the time
INSERT INTO rowvec.loaded (run_id, batch, rows) VALUES (%(run_id)s, %(batch)s, 0)
ON CONFLICT DO NOTHING
RETURNING (extract(epoch FROM now() - '2000-01-01 00:00:00+00'::timestamptz) * 1000000)::bigint

-- name: mark
UPDATE rowvec.loaded SET rows = %(rows)s WHERE run_id = %(run_id)s AND batch = %(batch)s

-- name: loaded_rows
SELECT rows FROM rowvec.loaded WHERE run_id = %(run_id)s AND batch = %(batch)s

-- name: copy
COPY {table} ({columns}) FROM STDIN (FORMAT binary)
