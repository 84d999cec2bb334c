-- name: set_state
UPDATE rowvec.pipelines SET state = %(state)s WHERE pipeline_id = %(pipeline_id)s

-- name: build -- if the generation has a row; otherwise its first run inserts one in this state
UPDATE rowvec.pipelines SET state = 'building' WHERE name = %(name)s

-- name: in_the_way -- objects bound to the table by its oid, which a rename would leave with the old table
SELECT format('the view %%s', c.oid::regclass)
FROM pg_depend AS d
JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_class AS c ON c.oid = r.ev_class
WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass(%(table)s) AND c.oid <> d.refobjid
UNION
SELECT format('the foreign key %%s of %%s', conname, conrelid::regclass)
FROM pg_constraint WHERE contype = 'f' AND to_regclass(%(table)s) IN (confrelid, conrelid)
UNION
SELECT format('the trigger %%s', tgname)
FROM pg_trigger WHERE tgrelid = to_regclass(%(table)s) AND NOT tgisinternal
UNION
SELECT format('the policy %%s', polname) FROM pg_policy WHERE polrelid = to_regclass(%(table)s)
UNION
SELECT format('the publication %%s', p.pubname)
FROM pg_publication_rel AS r JOIN pg_publication AS p ON p.oid = r.prpubid
WHERE r.prrelid = to_regclass(%(table)s)
ORDER BY 1

-- name: user_indexes -- those that are neither keys nor on vectors; a filter may need them
SELECT c.relname, pg_get_indexdef(c.oid), quote_ident(c.relname)
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid
JOIN pg_am AS am ON am.oid = c.relam
WHERE i.indrelid = to_regclass(%(table)s) AND am.amname NOT IN ('hnsw', 'ivfflat')
  AND i.indisvalid AND NOT i.indisprimary
  AND NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = i.indexrelid)

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

-- name: grants -- the privileges on a table, as parts of GRANT statements
SELECT a.privilege_type, a.is_grantable, coalesce(r.rolname, '')
FROM pg_class AS c
CROSS JOIN aclexplode(c.relacl) AS a
LEFT JOIN pg_roles AS r ON r.oid = a.grantee
WHERE c.oid = to_regclass(%(table)s) AND a.grantee <> c.relowner

-- name: grant
GRANT {privilege} ON {table} TO {grantee} {with_option}

-- name: owner -- the owner and the comment of a table
SELECT pg_get_userbyid(c.relowner), obj_description(c.oid, 'pg_class')
FROM pg_class AS c WHERE c.oid = to_regclass(%(table)s)

-- name: own
ALTER TABLE {table} OWNER TO {owner}

-- name: comment
COMMENT ON TABLE {table} IS {text}

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

-- name: drop_functions -- those that rowvec made for a table, which it knows by their comments
SELECT format('DROP %%s %%s', CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END, p.oid::regprocedure)
FROM pg_proc AS p
WHERE p.pronamespace = to_regnamespace(%(schema)s) AND p.proname = ANY (%(names)s)
  AND obj_description(p.oid, 'pg_proc') LIKE 'rowvec: %%'

-- name: drop_views
SELECT format('DROP VIEW %%s', c.oid::regclass)
FROM pg_class AS c
WHERE c.relnamespace = to_regnamespace(%(schema)s) AND c.relkind = 'v' AND c.relname = ANY (%(names)s)
  AND obj_description(c.oid, 'pg_class') LIKE 'rowvec: %%'
