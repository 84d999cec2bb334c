-- name: has_schema
SELECT to_regnamespace('rowvec_changes') IS NOT NULL

-- name: patience -- making a trigger waits for the table's writers, and all later writers wait for it meanwhile
SET LOCAL lock_timeout = '1s'

-- name: schema
CREATE SCHEMA rowvec_changes

-- name: lock -- the table before the queue, as an application's statement does; after it no transaction is in a trigger
LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE

-- name: queue -- the keys that an application has written, by which transaction, and when
-- The next run compares everything, so what an old queue has is not needed; the key may be another one by now.
-- The statement's time, and not the transaction's: one that was open for an hour has written nothing that is an hour old.
DROP TABLE IF EXISTS rowvec_changes.{queue};
CREATE TABLE rowvec_changes.{queue} (
    {columns},
    rowvec_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    rowvec_at timestamptz NOT NULL DEFAULT statement_timestamp()
);
COMMENT ON TABLE rowvec_changes.{queue} IS {comment};
-- Counts what could not be queued. A sequence keeps its value when a transaction rolls back.
CREATE SEQUENCE IF NOT EXISTS rowvec_changes.{failures};
-- Which merge has read the queue last, if the ledger is in another database.
CREATE SEQUENCE IF NOT EXISTS rowvec_changes.{mark} MINVALUE 0

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
GRANT SELECT ON SEQUENCE rowvec_changes.{failures} TO {role};
GRANT SELECT, UPDATE ON SEQUENCE rowvec_changes.{mark} TO {role}

-- name: trigger
DROP TRIGGER IF EXISTS {name} ON {table};
CREATE TRIGGER {name} AFTER {event} ON {table} {referencing}
FOR EACH STATEMENT EXECUTE FUNCTION rowvec_changes.{function}();
ALTER TABLE {table} ENABLE ALWAYS TRIGGER {name}

-- name: drop -- with the function all its triggers go, also those on partitions that were detached
DROP FUNCTION IF EXISTS rowvec_changes.{function}() CASCADE;
DROP TABLE IF EXISTS rowvec_changes.{queue};
DROP FUNCTION IF EXISTS rowvec_changes.{guard}();
DROP SEQUENCE IF EXISTS rowvec_changes.{failures};
DROP SEQUENCE IF EXISTS rowvec_changes.{mark}

-- name: facts -- what a run by the queue relies on; a run that finds something else compares everything
WITH RECURSIVE tree AS (
    SELECT c.oid, c.relkind, c.relpersistence FROM pg_class AS c WHERE c.oid = {table}::regclass
    UNION ALL
    SELECT c.oid, c.relkind, c.relpersistence
    FROM tree JOIN pg_inherits AS i ON i.inhparent = tree.oid AND NOT i.inhdetachpending
    JOIN pg_class AS c ON c.oid = i.inhrelid
), mine AS (
    SELECT t.tgrelid, t.tgtype, t.tgenabled, t.xmin
    FROM tree JOIN pg_trigger AS t ON t.tgrelid = tree.oid
    WHERE t.tgname LIKE {pattern} AND t.tgfoid = to_regproc({function}) AND t.tgqual IS NULL AND t.tgattr::text = ''
      -- The bits of tgtype: 4 INSERT, 8 DELETE, 16 UPDATE, 32 TRUNCATE, and none for AFTER and for a statement.
      AND CASE t.tgtype
          WHEN 4 THEN t.tgnewtable = 'rowvec_new'
          WHEN 8 THEN t.tgoldtable = 'rowvec_old'
          WHEN 16 THEN t.tgnewtable = 'rowvec_new' AND t.tgoldtable = 'rowvec_old'
          ELSE t.tgtype = 32 END
), guards AS (
    SELECT t.tgenabled, t.xmin
    FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
    WHERE t.tgrelid = to_regclass({queue}) AND t.tgtype = 42 AND md5(p.prosrc) = md5({guard_body})
), functions AS (
    SELECT p.oid, p.xmin FROM pg_proc AS p
    WHERE p.oid = to_regproc({function}) AND p.prosecdef AND md5(p.prosrc) = md5({body})
)
SELECT jsonb_build_object(
    'tables', (SELECT string_agg(format('%s:%s', oid, pg_relation_filenode(oid)), ' ' ORDER BY oid) FROM tree),
    'columns', (SELECT string_agg(format('%s:%s:%s:%s:%s', a.attname, a.attnum, a.atttypid, a.atttypmod,
            coalesce(d.xmin::text, md5((SELECT string_agg(e.enumlabel, ' ' ORDER BY e.oid)
                FROM pg_enum AS e WHERE e.enumtypid = a.atttypid)))), ' ' ORDER BY a.attnum)
        FROM pg_attribute AS a
        LEFT JOIN pg_attrdef AS d ON a.attgenerated <> '' AND d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = {table}::regclass AND a.attname = ANY ({read}::text[])),
    'triggers', (SELECT string_agg(format('%s:%s:%s:%s', tgrelid, tgtype, tgenabled, xmin), ' '
        ORDER BY tgrelid, tgtype) FROM mine),
    'function', (SELECT format('%s:%s', oid, xmin) FROM functions),
    'queue', to_regclass({queue})::oid,
    'guard', (SELECT string_agg(format('%s:%s', tgenabled, xmin), ' ') FROM guards),
    'failures', CASE WHEN to_regclass({failures}) IS NOT NULL THEN pg_sequence_last_value(to_regclass({failures})) END,
    'mark', CASE WHEN to_regclass({mark}) IS NOT NULL THEN pg_sequence_last_value(to_regclass({mark})) END
) || {of_run},
    (SELECT count(DISTINCT (tgrelid, tgtype)) FROM mine WHERE tgenabled = 'A') = 4 * (SELECT count(*) FROM tree)
        AND EXISTS (SELECT FROM functions) AND EXISTS (SELECT FROM guards WHERE tgenabled = 'A')
        AND to_regclass({failures}) IS NOT NULL AND to_regclass({mark}) IS NOT NULL
        AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass({queue}) AND attname = 'rowvec_at')
        AND (SELECT count(*) FROM pg_attribute AS q JOIN pg_attribute AS s USING (attname, atttypid, atttypmod)
             WHERE q.attrelid = to_regclass({queue}) AND s.attrelid = {table}::regclass
               AND attname = ANY ({key}::text[])) = cardinality({key}::text[]),
    CASE
        WHEN EXISTS (SELECT FROM tree WHERE relkind NOT IN ('r', 'p')) THEN 'foreign'
        WHEN EXISTS (SELECT FROM pg_subscription_rel AS s JOIN tree ON tree.oid = s.srrelid) THEN 'subscribed'
        WHEN EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = {table}::regclass) THEN 'part'
    END,
    CASE
        WHEN EXISTS (SELECT FROM tree WHERE relpersistence <> 'p' AND relkind = 'r') THEN 'unlogged'
        WHEN row_security_active({table}::regclass::oid) THEN 'restricted'
    END

-- name: facts_if_empty -- in one statement, so that nothing comes between the two
SELECT f.* FROM ({facts}) AS f WHERE NOT EXISTS (SELECT FROM rowvec_changes.{queue})

-- name: tree -- the table, its partitions and their partitions
WITH RECURSIVE tree AS (
    SELECT c.oid FROM pg_class AS c WHERE c.oid = {table}::regclass
    UNION ALL
    SELECT i.inhrelid FROM tree JOIN pg_inherits AS i ON i.inhparent = tree.oid AND NOT i.inhdetachpending
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

-- name: marks -- whether a table was truncated, or an entry is from another life of this database; the snapshot, the
-- oldest transaction that is open in it, and a transaction that is younger than each one that has failed to queue
SELECT
    EXISTS (SELECT FROM rowvec_changes.{queue} AS q WHERE NOT ({whole_key})),
    EXISTS (SELECT FROM rowvec_changes.{queue} AS q WHERE q.rowvec_xid >= pg_snapshot_xmax(pg_current_snapshot())),
    pg_current_snapshot()::text,
    pg_snapshot_xmin(pg_current_snapshot())::text,
    pg_current_xact_id()::text

-- name: keys -- in the source's database, where the run has no table
(SELECT {key} FROM rowvec_changes.{queue} AS q WHERE {whole_key}
 UNION SELECT {typed} FROM unnest({texts}) AS o ({key}))

-- name: copy_keys
COPY (SELECT DISTINCT {sent} FROM {keys} AS k) TO STDOUT (FORMAT binary)

-- name: keys_as_sent
CREATE TEMP TABLE sent_keys ({columns}) ON COMMIT DROP

-- name: copy_sent
COPY sent_keys FROM STDIN (FORMAT binary)

-- name: sent_scope
DROP TABLE IF EXISTS {scope};
CREATE TABLE {scope} AS SELECT DISTINCT {typed} FROM sent_keys AS s

-- name: ledger -- its id
SELECT ledger::text FROM rowvec.stores WHERE family = %(family)s::text

-- name: retried -- rejected rows that each run tries again
SELECT r.key FROM rowvec.rejects AS r
WHERE r.pipeline_id = {pipeline_id} AND (r.reason = 'not_removed' OR r.sqlstate IN ('23503', '23505', '23P01'))

-- name: set_mark
SELECT setval({mark}::regclass, {value})

-- name: removes -- for the rest of the transaction
SET LOCAL rowvec.removes = 'yes'

-- name: remove -- exactly the entries that the extract's snapshot has seen
-- An entry with a number that is not given out yet is from another life of this database, as after a restore of a dump.
DELETE FROM rowvec_changes.{queue} AS q
WHERE pg_visible_in_snapshot(q.rowvec_xid, {snapshot}::pg_snapshot)
   OR {whole} AND q.rowvec_xid >= pg_snapshot_xmax(pg_current_snapshot())

-- name: missed -- rows that have changed and are not in the queue
SELECT {key_json}::text FROM {diff} AS d
WHERE NOT EXISTS (SELECT FROM {scope} AS s WHERE {same_key})

-- name: known -- what the last run that merged has left
SELECT c.facts, c.rows, c.checksum::text, c.verified_at, c.verified_run,
    extract(epoch FROM now() - c.verified_at)::double precision,
    c.vectors IS NOT DISTINCT FROM to_regclass(format('%I.%I', p.table_schema, p.table_name))::oid,
    NOT EXISTS (SELECT FROM rowvec.runs AS r
        WHERE r.pipeline_id = c.pipeline_id AND r.merged_at IS NOT NULL AND r.run_id > c.merged_run),
    NOT EXISTS (SELECT FROM rowvec.runs AS r
        WHERE r.run_id = c.merged_run AND r.report IS NULL AND r.run_id IS DISTINCT FROM {run_id}::bigint)
FROM rowvec.changes AS c JOIN rowvec.pipelines AS p USING (pipeline_id)
WHERE c.pipeline_id = {pipeline_id}

-- name: served -- what serves searches: the vector table's columns and indexes, the functions and the view for it
-- The number of a row's transaction changes with the row.
md5(concat_ws(' ', {version}, {store},
    (SELECT string_agg(format('%s:%s:%s', a.attnum, a.atttypid, a.atttypmod), ' ' ORDER BY a.attnum)
     FROM pg_attribute AS a WHERE a.attrelid = to_regclass(format('%I.%I', {schema}, {name})) AND a.attnum > 0 AND NOT a.attisdropped),
    (SELECT string_agg(format('%s:%s:%s:%s', part.oid, i.indexrelid, i.indisvalid, i.xmin), ' ' ORDER BY i.indexrelid)
     FROM (SELECT to_regclass(format('%I.%I', {schema}, {name}))::oid UNION ALL SELECT h.inhrelid FROM pg_inherits AS h
         WHERE h.inhparent = to_regclass(format('%I.%I', {schema}, {name}))) AS part (oid)
     LEFT JOIN pg_index AS i ON i.indrelid = part.oid),
    (SELECT string_agg(format('%s:%s', f.oid, f.xmin), ' ' ORDER BY f.oid) FROM pg_proc AS f
     WHERE f.pronamespace = to_regnamespace(quote_ident({schema})) AND f.proname = ANY ({functions}::name[])),
    (SELECT string_agg(v.oid::text, ' ' ORDER BY v.oid) FROM pg_class AS v
     WHERE v.relnamespace = to_regnamespace(quote_ident({schema})) AND v.relname = ANY ({functions}::name[])),
    (SELECT t.tuned_at FROM rowvec.tunings AS t WHERE (t.table_schema, t.table_name) = ({schema}, {name})),
    (SELECT string_agg(format('%s:%s', b.build_id, b.xmin), ' ' ORDER BY b.build_id) FROM rowvec.index_builds AS b
     WHERE (b.table_schema, b.table_name) = ({schema}, {name}))))

-- name: note_served
UPDATE rowvec.changes SET facts = facts || jsonb_build_object('served', {served}) WHERE pipeline_id = {pipeline_id}

-- name: last_report -- of the run before this one; no row if that sync has left something to do, or if anything has changed since
SELECT r.run_id, r.report
FROM rowvec.pipelines AS p
JOIN rowvec.changes AS c USING (pipeline_id)
JOIN LATERAL (
    SELECT * FROM rowvec.runs AS r WHERE r.pipeline_id = p.pipeline_id AND r.run_id < {run_id}
    ORDER BY r.run_id DESC LIMIT 1
) AS r ON true
WHERE p.pipeline_id = {pipeline_id} AND p.state <> 'building' AND p.settings = {settings}
  AND r.state = 'succeeded' AND r.report ? 'embedded' AND c.facts ->> 'served' = {served}
  AND NOT EXISTS ({retried})
  AND NOT EXISTS (SELECT FROM rowvec.jobs AS j
      WHERE j.pipeline_id = p.pipeline_id AND (j.state <> 'collected' OR j.reported_run IS NULL))

-- name: record
INSERT INTO rowvec.changes (pipeline_id, facts, vectors, rows, checksum, verified_at, verified_run, merged_run)
SELECT {pipeline_id}, {facts}, to_regclass(format('%I.%I', table_schema, table_name))::oid, {rows}, {checksum}::numeric,
    now(), {run_id}, {run_id}
FROM rowvec.pipelines WHERE pipeline_id = {pipeline_id}
ON CONFLICT (pipeline_id) DO UPDATE
SET facts = excluded.facts, vectors = excluded.vectors, rows = excluded.rows, checksum = excluded.checksum,
    verified_at = excluded.verified_at, verified_run = excluded.verified_run, merged_run = excluded.merged_run

-- name: carry -- what was compared is taken away as it was before the merge, and added as it is now
UPDATE rowvec.changes
SET rows = rows + {rows}, checksum = checksum + {checksum}::numeric, merged_run = {run_id}, facts = facts || {facts}
WHERE pipeline_id = {pipeline_id}
RETURNING rows, checksum::text

-- name: doubt -- the next run compares everything, and says why
UPDATE rowvec.changes SET facts = facts || jsonb_build_object('doubt', {why}::text) WHERE pipeline_id = {pipeline_id}

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
