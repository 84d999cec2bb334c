-- name: store -- a run that catches up with its source makes more than one plan
INSERT INTO rowvec.plans (run_id, layout, counts, batches, direct, changes)
VALUES (%(run_id)s, %(layout)s, %(counts)s, %(batches)s, %(direct)s, %(changes)s)
ON CONFLICT (run_id) DO UPDATE
SET layout = excluded.layout, counts = excluded.counts, batches = excluded.batches, direct = excluded.direct,
    changes = excluded.changes, planned_at = now()

-- name: open
SELECT r.pipeline_id, p.layout, p.counts, p.batches, p.direct, p.changes
FROM rowvec.plans AS p JOIN rowvec.runs AS r USING (run_id)
WHERE p.run_id = %(run_id)s

-- name: fetch
SELECT {columns}, content, fingerprint, metadata_hash, rowvec_vector, {key_json}::text
FROM {plan} WHERE rowvec_batch = {batch}
ORDER BY fingerprint

-- name: sample_texts -- batches are formed by hash, so the first rows are a fair sample
SELECT coalesce(p.content, '')
FROM (SELECT DISTINCT ON (fingerprint) fingerprint, content FROM {plan} WHERE rowvec_batch IS NOT NULL) AS p
WHERE NOT {paid_for}
LIMIT {limit}

-- name: show
SELECT p.rowvec_action, {key_json}, {old}, p.content
FROM {plan} AS p {joined}
ORDER BY array_position(ARRAY['changed', 'deleted', 'new', 'metadata_only'], p.rowvec_action), p.fingerprint
LIMIT {limit}

-- name: stored
LEFT JOIN {table} AS t ON {same_key}

-- name: unpaid_characters
SELECT count(*), coalesce(sum(length(p.content)), 0)
FROM (SELECT DISTINCT ON (fingerprint) fingerprint, content FROM {plan} WHERE rowvec_batch IS NOT NULL) AS p
WHERE NOT {paid_for}

-- name: pass_pipeline -- a row of the family, so that what its generations have paid for is known
INSERT INTO rowvec.pipelines (name, family, state, table_schema, table_name, identity)
SELECT mark, split_part(%(name)s::text, '.', 1), 'building', '', mark, %(identity)s
FROM (SELECT 'plan ' || gen_random_uuid()) AS m (mark)
RETURNING pipeline_id

-- name: pass_run
INSERT INTO rowvec.runs (pipeline_id, cause, state) VALUES (%(pipeline_id)s, 'plan', 'planned') RETURNING run_id

-- name: in_scope
EXISTS (SELECT FROM {scope} AS scope WHERE {same_key})
