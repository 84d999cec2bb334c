-- name: differences -- what is wrong with each row that differs in source and vector table
SELECT
    CASE
        WHEN d.rowvec_action = 'new' THEN 'missing'
        WHEN d.rowvec_action = 'changed' AND d.fingerprint = t.fingerprint THEN 'corrupt'
        WHEN d.rowvec_action = 'metadata_only' AND d.metadata_hash = t.metadata_hash THEN 'corrupt'
        ELSE 'stale'
    END,
    CASE
        WHEN d.rowvec_action = 'new' THEN 'the source has this row, the vector table has not'
        WHEN d.rowvec_action = 'changed' AND d.fingerprint = t.fingerprint
            THEN 'the content in the vector table is not what its fingerprint was made of'
        WHEN d.rowvec_action = 'changed' THEN 'the source has other content by now'
        WHEN d.metadata_hash = t.metadata_hash
            THEN 'the metadata in the vector table is not what its hash was made of'
        ELSE 'the source has other metadata by now'
    END,
    {key_json},
    {planned}
FROM taken AS d
LEFT JOIN {table} AS t ON {same_key}
UNION ALL
SELECT 'orphaned', 'the vector table has this row, the source has not', {stored_key_json}, {planned_gone}
FROM {table} AS t WHERE {digest} IN (SELECT digest FROM gone)

-- name: is_planned -- the plan has the row with exactly this content, so the merge should have written it
EXISTS (SELECT FROM {plan} AS p
        WHERE {same_key} AND p.fingerprint = d.fingerprint AND p.metadata_hash = d.metadata_hash)

-- name: is_planned_gone
EXISTS (SELECT FROM {plan} AS p WHERE {same_key} AND p.rowvec_action = 'deleted')

-- name: rejected -- rows that are known to have no vector
SELECT key, fingerprint FROM rowvec.rejects WHERE pipeline_id = {pipeline_id} AND fingerprint IS NOT NULL

-- name: planned_pairs -- what the source had when it was planned: the plan's rows, and the rows not in the plan
SELECT {digest} AS digest, fingerprint, metadata_hash FROM {plan} WHERE rowvec_action <> 'deleted'
{left_alone}

-- name: left_alone -- the rows not in the plan, if there is a vector table
UNION ALL
SELECT {digest}, fingerprint, metadata_hash FROM {table} AS t WHERE NOT EXISTS (SELECT FROM {plan} AS p WHERE {same_key})

-- name: planned_digests
SELECT {digest} FROM {plan} WHERE rowvec_action <> 'deleted'

-- name: planned_deletes
SELECT {digest} FROM {plan} WHERE rowvec_action = 'deleted'
