-- name: set_state
UPDATE rowvec.pipelines SET state = %(state)s WHERE pipeline_id = %(pipeline_id)s

-- name: build -- if the generation has a row; otherwise its first run inserts one in this state
UPDATE rowvec.pipelines SET state = 'building' WHERE name = %(name)s

-- name: qualified -- the name as pg_get_indexdef writes it
SELECT format('%%I.%%I', %(schema)s::text, %(table)s::text)

-- name: is_there
SELECT to_regclass(%(table)s) IS NOT NULL

-- name: keep -- as in merge.sql: this lock cancels autovacuum, and no reader or writer has to wait for it
SET LOCAL lock_timeout = '5s';
LOCK TABLE {live}, {next} IN SHARE UPDATE EXCLUSIVE MODE

-- name: lock -- all readers queue behind a pending ACCESS EXCLUSIVE lock, so the timeout is short
SET LOCAL lock_timeout = '300ms';
LOCK TABLE {live}, {next} IN ACCESS EXCLUSIVE MODE

-- name: rename
ALTER TABLE {table} RENAME TO {name}

-- name: move_row -- to another name and table; names are unique, so the live generation is moved first
UPDATE rowvec.pipelines
SET name = %(name)s, table_name = %(table)s, state = %(state)s, switched_at = now(), journal_whole = true,
    settings = jsonb_set(jsonb_set(settings, '{{name}}', to_jsonb(%(name)s::text)), '{{target,table}}',
                         to_jsonb(%(target)s::text))
WHERE pipeline_id = %(pipeline_id)s

-- name: move_builds
UPDATE rowvec.index_builds SET table_name = %(to)s WHERE table_schema = %(schema)s AND table_name = %(from)s

-- name: move_tunings
UPDATE rowvec.tunings SET table_name = %(to)s WHERE table_schema = %(schema)s AND table_name = %(from)s

-- name: forget_tunings
DELETE FROM rowvec.tunings WHERE table_schema = %(schema)s AND table_name = %(table)s

-- name: drop_table
DROP TABLE IF EXISTS {table}

-- name: drop_functions -- those that rowvec made for a table, known by their comment or, if that was changed, body
SELECT format('DROP %%s %%s', CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END, p.oid::regprocedure)
FROM pg_proc AS p
WHERE p.pronamespace = to_regnamespace(%(schema)s) AND p.proname = ANY (%(names)s)
  AND (obj_description(p.oid, 'pg_proc') LIKE 'rowvec: %%'
       OR p.prosrc LIKE '%%rowvec\_set text[]%%' OR p.prosrc LIKE '%%LEFT JOIN rowvec.pipelines%%')

-- name: drop_views
SELECT format('DROP VIEW %%s', c.oid::regclass)
FROM pg_class AS c
WHERE c.relnamespace = to_regnamespace(%(schema)s) AND c.relkind = 'v' AND c.relname = ANY (%(names)s)
  AND (obj_description(c.oid, 'pg_class') LIKE 'rowvec: %%' OR EXISTS (
      SELECT FROM pg_proc AS p
      WHERE p.pronamespace = c.relnamespace AND p.proname = c.relname AND p.prosrc LIKE '%%LEFT JOIN rowvec.pipelines%%'))
