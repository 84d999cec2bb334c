-- name: has_key -- whether a row has one of the keys to erase; {erased} has them in the types of the vector table
EXISTS (SELECT FROM {erased} AS e WHERE {same_key})

-- name: make_erased
DROP TABLE IF EXISTS {erased};
CREATE UNLOGGED TABLE {erased} ({columns})

-- name: add_keys
INSERT INTO {erased} SELECT DISTINCT {typed} FROM unnest({arrays}) AS k ({columns})

-- name: listed_keys
SELECT {key_json} FROM {erased} ORDER BY 1

-- name: digests
SELECT {digest} FROM {erased}

-- name: rows_there -- rows of a relation with one of the keys
SELECT {key_json}::text FROM {relation} AS s WHERE {has_key} LIMIT 3

-- name: rejects_there
SELECT r.key::text FROM rowvec.rejects AS r WHERE r.pipeline_id = {pipeline_id} AND {is_reject} LIMIT 3

-- name: is_reject -- the key of a reject is in JSON, with the number of the chunk if there is one
EXISTS (
    SELECT FROM {erased} AS e
    WHERE {key_json} = jsonb_path_query_array(r.key, {path}::text::jsonpath))

-- name: make_tables -- what the scan of the store fills: vectors that other rows need, traces, and vectors without keys
DROP TABLE IF EXISTS {needed}, {traces}, {keyless};
CREATE UNLOGGED TABLE {needed} (fingerprint bytea NOT NULL);
CREATE UNLOGGED TABLE {traces} (object text NOT NULL, fingerprint bytea NOT NULL, row bigint);
CREATE UNLOGGED TABLE {keyless} (object text NOT NULL, fingerprint bytea NOT NULL)

-- name: need_table
INSERT INTO {needed} SELECT DISTINCT fingerprint FROM {table} AS s WHERE NOT {has_key}

-- name: need_rejects -- the vectors of rows that the database refuses are paid for too
INSERT INTO {needed}
SELECT r.fingerprint FROM rowvec.rejects AS r
WHERE r.pipeline_id = ANY ({generations}) AND r.fingerprint IS NOT NULL AND NOT {is_reject}

-- name: entry_table -- the rows of one journal entry, or the keys and the fingerprints of one artifact
DROP TABLE IF EXISTS {entry_rows};
CREATE UNLOGGED TABLE {entry_rows} ({columns})

-- name: copy_entry
COPY {entry_rows} FROM STDIN (FORMAT csv)

-- name: need_entry
INSERT INTO {needed} SELECT DISTINCT fingerprint FROM {entry_rows} AS s WHERE fingerprint IS NOT NULL AND NOT {has_key}

-- name: erased_of_entry -- what each row adds to the checksum of a manifest; see totals.sql
SELECT
    {key_json}::text,
    CASE WHEN fingerprint IS NOT NULL
         THEN ('x' || left(encode(sha256({digest} || fingerprint), 'hex'), 15))::bit(60)::bigint END
FROM {entry_rows} AS s
WHERE {has_key}

-- name: delete_of_entry
DELETE FROM {entry_rows} AS s WHERE {has_key}

-- name: export_entry
COPY {entry_rows} TO STDOUT (FORMAT csv)

-- name: drop_entry
DROP TABLE {entry_rows}

-- name: copy_artifact
COPY {entry_rows} ({columns}) FROM STDIN (FORMAT binary)

-- name: need_artifact
INSERT INTO {needed} SELECT fingerprint FROM {entry_rows} AS s WHERE NOT {has_key}

-- name: trace_artifact
INSERT INTO {traces} SELECT {object}, fingerprint, rowvec_row FROM {entry_rows} AS s WHERE {has_key}

-- name: keep_keyless
INSERT INTO {keyless} SELECT DISTINCT {object}, fingerprint FROM {entry_rows}

-- name: trace_keyless -- vectors without a key that no row needs: nobody can tell that they are of another row
ANALYZE {needed};
ANALYZE {keyless};
INSERT INTO {traces}
SELECT k.object, k.fingerprint, NULL FROM {keyless} AS k
WHERE NOT EXISTS (SELECT FROM {needed} AS n WHERE n.fingerprint = k.fingerprint)

-- name: traced -- per object: rows, and whether another row needs one of their vectors
SELECT
    t.object, count(*),
    count(DISTINCT t.fingerprint) FILTER (WHERE EXISTS (SELECT FROM {needed} AS n WHERE n.fingerprint = t.fingerprint))
FROM {traces} AS t GROUP BY t.object ORDER BY t.object

-- name: traces_of -- the rows of one object that go, and the fingerprints of which nothing stays
SELECT t.row, t.fingerprint, EXISTS (SELECT FROM {needed} AS n WHERE n.fingerprint = t.fingerprint)
FROM {traces} AS t WHERE t.object = {object}

-- name: unneeded -- a condition on a fingerprint of the ledger
NOT EXISTS (SELECT FROM {needed} AS n WHERE n.fingerprint = a.fingerprint)

-- name: count_answers
SELECT count(*) FROM rowvec.answers AS a WHERE a.pipeline_id = ANY ({generations}) AND {unneeded}

-- name: unmerged_answers -- texts that a run has paid for and that no run has merged since
SELECT count(*) FROM rowvec.answers AS a
WHERE a.pipeline_id = ANY ({generations}) AND {unneeded} AND NOT EXISTS (
    SELECT FROM rowvec.runs AS r
    WHERE r.pipeline_id = a.pipeline_id AND r.run_id >= a.run_id AND r.merged_at IS NOT NULL AND r.state = 'succeeded')

-- name: unfinished_jobs
SELECT count(*) FROM rowvec.jobs AS j WHERE j.pipeline_id = ANY ({generations}) AND j.state <> 'collected'

-- name: delete_answers
DELETE FROM rowvec.answers AS a WHERE a.pipeline_id = ANY ({generations}) AND {unneeded}

-- name: delete_job_texts
DELETE FROM rowvec.job_texts AS a WHERE a.pipeline_id = ANY ({generations}) AND {unneeded}

-- name: count_rejects
SELECT count(*) FROM rowvec.rejects AS r WHERE r.pipeline_id = ANY ({generations}) AND {is_reject}

-- name: delete_rejects
DELETE FROM rowvec.rejects AS r WHERE r.pipeline_id = ANY ({generations}) AND {is_reject}

-- name: count_rows
SELECT count(*) FROM {table} AS s WHERE {has_key}

-- name: delete_rows
DELETE FROM {table} AS s WHERE {has_key}

-- name: analyze -- or pg_statistic goes on showing values of rows that are gone
ANALYZE {table}

-- name: is_there
SELECT to_regclass({table}) IS NOT NULL

-- name: artifacts -- those that the ledger has of a pipeline
SELECT DISTINCT name, sha256, rows, bytes FROM rowvec.artifacts WHERE pipeline_id = ANY ({generations}) ORDER BY name

-- name: manifests
SELECT DISTINCT manifest FROM rowvec.runs WHERE pipeline_id = ANY ({generations}) AND manifest IS NOT NULL

-- name: names_of_others -- objects under names that are ours or that we use too, and that belong to other pipelines
SELECT a.name FROM rowvec.artifacts AS a WHERE a.pipeline_id <> ALL ({generations})
UNION
SELECT r.manifest FROM rowvec.runs AS r WHERE r.pipeline_id <> ALL ({generations}) AND r.manifest IS NOT NULL

-- name: replace_artifact -- of the same run and age, so that a prune deletes it no later
INSERT INTO rowvec.artifacts (pipeline_id, run_id, last_run_id, batch, name, sha256, rows, bytes, listed, created_at)
SELECT pipeline_id, run_id, last_run_id, batch, %(name)s, %(sha256)s, %(rows)s, %(bytes)s, listed, created_at
FROM rowvec.artifacts WHERE pipeline_id = ANY (%(generations)s) AND name = %(old)s
ON CONFLICT (pipeline_id, name) DO NOTHING

-- name: point_to_new -- what the artifact keeps; what it loses goes with the old one
UPDATE rowvec.embeddings AS e SET artifact_id = new.artifact_id
FROM rowvec.artifacts AS old JOIN rowvec.artifacts AS new USING (pipeline_id)
WHERE old.pipeline_id = ANY ({generations}) AND old.name = {old} AND new.name = {new}
  AND e.artifact_id = old.artifact_id
  AND NOT EXISTS (
      SELECT FROM {traces} AS t
      WHERE t.object = {old} AND t.fingerprint = e.fingerprint
        AND NOT EXISTS (SELECT FROM {needed} AS n WHERE n.fingerprint = t.fingerprint))

-- name: forget_artifact
DELETE FROM rowvec.artifacts WHERE pipeline_id = ANY (%(generations)s) AND name = %(old)s

-- name: rename_manifest
UPDATE rowvec.runs SET manifest = %(name)s, manifest_sha256 = %(sha256)s
WHERE pipeline_id = ANY (%(generations)s) AND manifest = %(old)s

-- name: clear_runs -- what earlier runs have said of single rows: keys, and in sentences values too
UPDATE rowvec.runs
SET error = CASE WHEN error IS NOT NULL THEN {removed} END,
    checks = CASE WHEN jsonb_typeof(checks) = 'array' THEN (
        SELECT jsonb_agg(CASE WHEN jsonb_typeof(c) = 'object' THEN {without_rows} ELSE c END ORDER BY n)
        FROM jsonb_array_elements(checks) WITH ORDINALITY AS a (c, n)) ELSE checks END,
    report = CASE WHEN jsonb_typeof(report -> 'checks') = 'array' THEN jsonb_set(report, '{{checks}}', coalesce((
        SELECT jsonb_agg(CASE WHEN jsonb_typeof(c) = 'object' THEN {without_rows} ELSE c END ORDER BY n)
        FROM jsonb_array_elements(report -> 'checks') WITH ORDINALITY AS a (c, n)), '[]')) ELSE report END
        - '{{rows,objects}}'::text[]
WHERE pipeline_id = ANY ({generations}) AND run_id < {run_id}

-- name: without_rows
CASE WHEN c ? 'rows' THEN c || '{{"rows": []}}' ELSE c END

-- name: clear_plans
UPDATE rowvec.plans SET changes = changes - '{{missed_keys,others}}'::text[]
WHERE changes IS NOT NULL AND run_id IN (SELECT run_id FROM rowvec.runs WHERE pipeline_id = ANY ({generations}))

-- name: open_record
SELECT erasure_id, keys, leftovers, removed, asked_at FROM rowvec.erasures
WHERE family = %(family)s AND finished_at IS NULL

-- name: begin -- one erasure of a pipeline is open at a time; keys that are asked for meanwhile are added to it
INSERT INTO rowvec.erasures AS known (family, keys) VALUES (%(family)s, %(keys)s)
ON CONFLICT (family) WHERE finished_at IS NULL DO UPDATE
SET keys = (SELECT jsonb_agg(DISTINCT k) FROM jsonb_array_elements(known.keys || excluded.keys) AS a (k))

-- name: note_leftovers -- before they are written
UPDATE rowvec.erasures SET leftovers = leftovers || %(names)s::text[] WHERE erasure_id = %(erasure_id)s

-- name: note_removed -- in the transaction that makes the new objects the ones in use
UPDATE rowvec.erasures SET leftovers = %(names)s::text[], removed = removed || %(removed)s
WHERE erasure_id = %(erasure_id)s

-- name: finish -- the keys go too: a record of an erasure must be no trace
UPDATE rowvec.erasures
SET keys = '[]', leftovers = '{{}}', removed = '[]', certificate = %(certificate)s, finished_at = now()
WHERE erasure_id = %(erasure_id)s
RETURNING finished_at

-- name: other_families
SELECT DISTINCT family FROM rowvec.pipelines WHERE pipeline_id <> ALL ({generations}) AND state = 'live' ORDER BY 1

-- name: make_due -- for the policy: keys that the store has, and those of rows that were there lately
DROP TABLE IF EXISTS {candidates}, {spared}, {lately};
CREATE UNLOGGED TABLE {candidates} ({columns});
CREATE UNLOGGED TABLE {spared} (LIKE {candidates});
CREATE UNLOGGED TABLE {lately} (LIKE {candidates})

-- name: cutoff
SELECT now() - make_interval(secs => {seconds})

-- name: candidates_of_entry
INSERT INTO {candidates} SELECT DISTINCT {typed} FROM {entry_rows} AS s

-- name: spare_entry
INSERT INTO {spared} SELECT DISTINCT {typed} FROM {entry_rows} AS s

-- name: empty_lately
TRUNCATE {lately}

-- name: leave_lately -- what a journal entry names replaces what was known of it
DELETE FROM {lately} AS l USING {entry_rows} AS s WHERE {same_key}

-- name: enter_lately
INSERT INTO {lately} SELECT DISTINCT {typed} FROM {entry_rows} AS s WHERE fingerprint IS NOT NULL

-- name: spare_lately
INSERT INTO {spared} SELECT * FROM {lately}

-- name: old_artifacts
SELECT DISTINCT name FROM rowvec.artifacts WHERE pipeline_id = ANY ({generations}) AND created_at <= {before}

-- name: due
INSERT INTO {erased}
SELECT DISTINCT * FROM {candidates} AS c WHERE NOT EXISTS (SELECT FROM {spared} AS s WHERE {same_key})

-- name: drop_due
DROP TABLE IF EXISTS {candidates}, {spared}, {lately}

-- name: leave_out -- keys of rows that a relation has
DELETE FROM {erased} AS e USING {relation} AS s WHERE {same_key}

-- name: leave_out_digests
DELETE FROM {erased} WHERE {digest} = ANY ({digests}::bytea[])

-- name: leave_out_rejects
DELETE FROM {erased} AS e USING rowvec.rejects AS r
WHERE r.pipeline_id = {pipeline_id} AND {key_json} = jsonb_path_query_array(r.key, {path}::text::jsonpath)

-- name: other_scratch
SELECT count(*) FROM pg_class AS c
WHERE c.relnamespace = 'rowvec'::regnamespace AND c.relkind = 'r' AND starts_with(c.relname, 'scratch_')
  AND NOT starts_with(c.relname, 'scratch_' || {scratch} || '_')
