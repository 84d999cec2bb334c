-- name: forget_gone_rejects -- rejects whose row is gone or has other content
-- A rejected row is not in the vector table, so it would be among the rows that were read.
DELETE FROM rowvec.rejects AS r
WHERE r.pipeline_id = {pipeline_id} AND r.fingerprint IS NOT NULL
  AND r.reason <> 'not_removed' AND {among} AND NOT (r.reason = 'refused' AND r.run_id = {run_id})
  AND NOT EXISTS (
      SELECT FROM taken AS d WHERE {key_json} = r.key AND d.fingerprint = r.fingerprint
      AND (r.metadata_hash IS NULL OR r.metadata_hash = d.metadata_hash))

-- name: count_taken
SELECT
    count(*) FILTER (WHERE rowvec_action = 'new'),
    count(*) FILTER (WHERE rowvec_action = 'changed'),
    count(*) FILTER (WHERE rowvec_action = 'metadata_only'),
    (SELECT count(*) FROM gone)
FROM taken

-- name: plan_rows -- in the same layout as the plan in joined.sql; equal contents together
-- The table is there already if the stage is tried again because the answer to the first try was lost.
DROP TABLE IF EXISTS {plan};
CREATE TABLE {plan} AS
SELECT
    d.rowvec_action,
    CASE WHEN d.rowvec_action IN ('new', 'changed') THEN {batch} END AS rowvec_batch,
    {typed}
    d.content,
    d.rowvec_vector,
    d.fingerprint,
    d.metadata_hash
FROM taken AS d
ORDER BY rowvec_batch, d.fingerprint

-- name: plan_deletes -- the vector table has the keys that belong to the digests
INSERT INTO {plan} (rowvec_action, {key})
SELECT 'deleted', {key} FROM {table} AS t WHERE {digest} IN (SELECT digest FROM gone)

-- name: drop_plan
DROP TABLE IF EXISTS {plan}

-- name: add_findings -- the differences of source and vector table as findings of an audit
INSERT INTO {findings} (key, kind, reason, void)
SELECT key::jsonb, kind, reason, kind = 'corrupt'
FROM unnest(%(keys)s::text[], %(kinds)s::text[], %(reasons)s::text[]) AS f (key, kind, reason)
ON CONFLICT DO NOTHING
