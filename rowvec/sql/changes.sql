-- name: has_schema
SELECT to_regnamespace('rowvec_changes') IS NOT NULL

-- name: patience -- making a trigger waits for the table's writers, and all later writers wait for it meanwhile
SET LOCAL lock_timeout = '1s'

-- name: schema
CREATE SCHEMA rowvec_changes

-- name: queue -- the keys that an application has written, by which transaction, and when
CREATE TABLE IF NOT EXISTS rowvec_changes.{queue} ({columns}, rowvec_xid xid8 NOT NULL DEFAULT pg_current_xact_id());
-- The statement's time, and not the transaction's: one that was open for an hour has written nothing that is an hour old.
ALTER TABLE rowvec_changes.{queue} ADD COLUMN IF NOT EXISTS rowvec_at timestamptz NOT NULL DEFAULT statement_timestamp();
COMMENT ON TABLE rowvec_changes.{queue} IS {comment};
-- Counts what could not be queued. A sequence keeps its value when a transaction rolls back.
CREATE SEQUENCE IF NOT EXISTS rowvec_changes.{failures}

-- name: guard -- an entry that anybody but a run removes counts as one that could not be queued
CREATE OR REPLACE FUNCTION rowvec_changes.{guard}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS {body};
DROP TRIGGER IF EXISTS {guard} ON rowvec_changes.{queue};
CREATE TRIGGER {guard} BEFORE DELETE OR TRUNCATE ON rowvec_changes.{queue}
FOR EACH STATEMENT EXECUTE FUNCTION rowvec_changes.{guard}();
ALTER TABLE rowvec_changes.{queue} ENABLE ALWAYS TRIGGER {guard}

-- name: guard_body
BEGIN
    IF current_setting('rowvec.removes', true) IS DISTINCT FROM 'yes' THEN
        PERFORM nextval({failures}::regclass);
    END IF;
    RETURN NULL;
END

-- name: function -- runs as its owner, so that an application needs no privilege on the queue
CREATE OR REPLACE FUNCTION rowvec_changes.{function}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS {body}

-- name: body -- whatever is wrong with the queue, the application's statement goes through, and the next run compares all
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO rowvec_changes.{queue} ({key}) SELECT {key} FROM rowvec_new;
    ELSIF TG_OP = 'UPDATE' THEN
        INSERT INTO rowvec_changes.{queue} ({key}) SELECT {key} FROM rowvec_new UNION SELECT {key} FROM rowvec_old;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO rowvec_changes.{queue} ({key}) SELECT {key} FROM rowvec_old;
    ELSE
        INSERT INTO rowvec_changes.{queue} DEFAULT VALUES;
    END IF;
    RETURN NULL;
EXCEPTION WHEN OTHERS THEN
    BEGIN
        PERFORM nextval({failures}::regclass);
    EXCEPTION WHEN OTHERS THEN
        RETURN NULL;
    END;
    RETURN NULL;
END

-- name: grants
GRANT USAGE ON SCHEMA rowvec_changes TO {role};
GRANT SELECT, DELETE ON rowvec_changes.{queue} TO {role};
GRANT SELECT ON SEQUENCE rowvec_changes.{failures} TO {role}

-- name: trigger
DROP TRIGGER IF EXISTS {name} ON {table};
CREATE TRIGGER {name} AFTER {event} ON {table} {referencing}
FOR EACH STATEMENT EXECUTE FUNCTION rowvec_changes.{function}();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}

-- name: drop_trigger
DROP TRIGGER IF EXISTS {name} ON {table}

-- name: drop
DROP FUNCTION IF EXISTS rowvec_changes.{function}();
DROP TABLE IF EXISTS rowvec_changes.{queue};
DROP FUNCTION IF EXISTS rowvec_changes.{guard}();
DROP SEQUENCE IF EXISTS rowvec_changes.{failures}

-- name: facts -- what a run by the queue relies on; a run that finds something else compares everything
WITH RECURSIVE tree AS (
    SELECT c.oid, c.relkind FROM pg_class AS c WHERE c.oid = {table}::regclass
    UNION ALL
    SELECT c.oid, c.relkind
    FROM tree JOIN pg_inherits AS i ON i.inhparent = tree.oid JOIN pg_class AS c ON c.oid = i.inhrelid
), mine AS (
    SELECT t.tgrelid, t.tgname, t.tgenabled, t.xmin
    FROM tree JOIN pg_trigger AS t ON t.tgrelid = tree.oid
    WHERE t.tgname LIKE {pattern} AND t.tgfoid = to_regproc({function})
)
SELECT jsonb_build_object(
    'tables', (SELECT string_agg(format('%s:%s', oid, pg_relation_filenode(oid)), ' ' ORDER BY oid) FROM tree),
    'triggers', (SELECT string_agg(format('%s:%s:%s:%s', tgrelid, tgname, tgenabled, xmin), ' '
        ORDER BY tgrelid, tgname) FROM mine),
    'function', (SELECT format('%s:%s:%s:%s', oid, prosecdef, proconfig, md5(prosrc))
        FROM pg_proc WHERE oid = to_regproc({function})),
    'queue', to_regclass({queue})::oid,
    'guard', (SELECT format('%s:%s:%s', t.tgenabled, t.xmin, md5(p.prosrc))
        FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid WHERE t.tgrelid = to_regclass({queue}) AND NOT t.tgisinternal),
    'failures', CASE WHEN to_regclass({failures}) IS NOT NULL THEN pg_sequence_last_value(to_regclass({failures})) END
) || {of_run},
    (SELECT count(*) FROM mine WHERE tgenabled = 'A') = 4 * (SELECT count(*) FROM tree)
        AND to_regproc({function}) IS NOT NULL AND to_regclass({failures}) IS NOT NULL
        AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass({queue}) AND attname = 'rowvec_at'),
    (SELECT count(*) FROM tree WHERE relkind NOT IN ('r', 'p')) > 0,
    EXISTS (SELECT FROM pg_subscription_rel AS s JOIN tree ON tree.oid = s.srrelid)

-- name: tree -- the table, its partitions and their partitions
WITH RECURSIVE tree AS (
    SELECT c.oid FROM pg_class AS c WHERE c.oid = {table}::regclass
    UNION ALL
    SELECT i.inhrelid FROM tree JOIN pg_inherits AS i ON i.inhparent = tree.oid
)
SELECT n.nspname, c.relname
FROM tree JOIN pg_class AS c ON c.oid = tree.oid JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY c.oid

-- name: scope -- the queued keys that this snapshot sees
DROP TABLE IF EXISTS {scope};
CREATE TABLE {scope} AS SELECT DISTINCT {key} FROM rowvec_changes.{queue} AS q WHERE {whole_key}

-- name: add_retried -- rejected rows that each run tries again
INSERT INTO {scope} ({key})
SELECT {typed} FROM rowvec.rejects AS r
WHERE r.pipeline_id = {pipeline_id} AND (r.reason = 'not_removed' OR r.sqlstate IN ('23503', '23505', '23P01'))
ON CONFLICT DO NOTHING

-- name: index_scope
ALTER TABLE {scope} ADD PRIMARY KEY ({key})

-- name: analyze_scope -- without statistics, a run for ten keys may read the whole table
ANALYZE {scope}

-- name: count_scope
SELECT count(*) FROM {scope}

-- name: any_entry
SELECT EXISTS (SELECT FROM rowvec_changes.{queue})

-- name: waiting -- entries, when the oldest of them was written, and how many seconds ago
SELECT count(*), min(rowvec_at), extract(epoch FROM statement_timestamp() - min(rowvec_at))::double precision
FROM rowvec_changes.{queue}

-- name: marks -- whether a table was truncated, or an entry is from another life of this database; and the snapshot
SELECT
    EXISTS (SELECT FROM rowvec_changes.{queue} AS q WHERE NOT ({whole_key})),
    EXISTS (SELECT FROM rowvec_changes.{queue} AS q WHERE q.rowvec_xid >= pg_snapshot_xmax(pg_current_snapshot())),
    pg_current_snapshot()::text

-- name: removes -- for the rest of the transaction
SET LOCAL rowvec.removes = 'yes'

-- name: remove -- exactly the entries that the extract's snapshot has seen
-- An entry with a number that is not given out yet is from another life of this database, as after a restore of a dump.
DELETE FROM rowvec_changes.{queue} AS q
WHERE pg_visible_in_snapshot(q.rowvec_xid, {snapshot}::pg_snapshot)
   OR {whole} AND q.rowvec_xid >= pg_snapshot_xmax(pg_current_snapshot())

-- name: missed -- rows that have changed and are not in the queue
SELECT {key_json}::text FROM diff AS d
WHERE NOT EXISTS (SELECT FROM {scope} AS s WHERE {same_key})

-- name: known -- what the last run that merged has left
SELECT c.facts, c.rows, c.checksum::text, c.verified_at, c.verified_run,
    extract(epoch FROM now() - c.verified_at)::double precision,
    c.vectors IS NOT DISTINCT FROM to_regclass(format('%I.%I', p.table_schema, p.table_name))::oid,
    NOT EXISTS (SELECT FROM rowvec.runs AS r
        WHERE r.pipeline_id = c.pipeline_id AND r.merged_at IS NOT NULL AND r.run_id > c.merged_run)
FROM rowvec.changes AS c JOIN rowvec.pipelines AS p USING (pipeline_id)
WHERE c.pipeline_id = {pipeline_id}

-- name: record
INSERT INTO rowvec.changes (pipeline_id, facts, vectors, rows, checksum, verified_at, verified_run, merged_run)
SELECT {pipeline_id}, {facts}, to_regclass(format('%I.%I', table_schema, table_name))::oid, {rows}, {checksum}::numeric,
    now(), {run_id}, {run_id}
FROM rowvec.pipelines WHERE pipeline_id = {pipeline_id}
ON CONFLICT (pipeline_id) DO UPDATE
SET facts = excluded.facts, vectors = excluded.vectors, rows = excluded.rows, checksum = excluded.checksum,
    verified_at = excluded.verified_at, verified_run = excluded.verified_run, merged_run = excluded.merged_run

-- name: carry
UPDATE rowvec.changes SET rows = {rows}, checksum = {checksum}::numeric, merged_run = {run_id} WHERE pipeline_id = {pipeline_id}

-- name: doubt -- the next run compares everything
DELETE FROM rowvec.changes WHERE pipeline_id = {pipeline_id}

-- name: note_look -- what rowvec.freshness says of a queue that it cannot read itself
INSERT INTO rowvec.looks AS l (pipeline_id, queue, is_here, waiting, oldest_at)
VALUES (%(pipeline_id)s, %(queue)s, %(is_here)s, %(waiting)s, %(oldest_at)s)
ON CONFLICT (pipeline_id) DO UPDATE
SET queue = excluded.queue, is_here = excluded.is_here, waiting = excluded.waiting, oldest_at = excluded.oldest_at,
    looked_at = clock_timestamp()

-- name: forget -- the pipeline has no queue any more
DELETE FROM rowvec.looks WHERE pipeline_id = {pipeline_id};
DELETE FROM rowvec.changes WHERE pipeline_id = {pipeline_id}

-- name: what_waits
SELECT waiting, extract(epoch FROM oldest)::double precision
FROM rowvec.freshness AS f JOIN rowvec.pipelines AS p ON p.name = f.pipeline WHERE p.pipeline_id = %(pipeline_id)s

-- name: is_at_work -- whether a run has the pipeline; a lease that was not renewed in time is one of a run that was killed
SELECT l.held AND w.ends_at > clock_timestamp()
FROM rowvec.pipelines AS p
JOIN rowvec.run_leases AS l USING (pipeline_id)
JOIN rowvec.lease_renewals AS w USING (pipeline_id)
WHERE p.name = %(name)s
