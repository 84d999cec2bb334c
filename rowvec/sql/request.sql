-- name: batch -- by the first 24 bits of the fingerprint: batches of equal size, and equal contents in one batch
(((((get_byte(d.fingerprint, 0) << 16) + (get_byte(d.fingerprint, 1) << 8) + get_byte(d.fingerprint, 2))::bigint)
    * {batches}) >> 24)::int

-- name: index_plan
CREATE INDEX ON {plan} (rowvec_batch)

-- name: count_texts -- distinct contents to embed, and how many of them are paid for already
SELECT count(*), count(*) FILTER (WHERE {paid_for})
FROM (SELECT DISTINCT ON (fingerprint) fingerprint, content FROM {plan} WHERE rowvec_batch IS NOT NULL) AS p

-- name: count_rows
SELECT count(*) FROM {table}

-- name: count_rejects
SELECT count(*) FROM rowvec.rejects WHERE pipeline_id = {pipeline_id}

-- name: forget_fixed_rejects -- rejects of the kinds that every extract finds again, and that this one did not find
DELETE FROM rowvec.rejects AS r
WHERE pipeline_id = {pipeline_id} AND run_id <> {run_id} AND {among}
  AND reason IN (
      'null_key', 'duplicate_key', 'empty', 'unreadable',
      'missing_image', 'not_an_image', 'broken_image', 'image_too_large')

-- name: in_scope -- whether a reject r is of a row that the run compares
EXISTS (SELECT FROM {scope} AS scope WHERE {key_json} = r.key)
