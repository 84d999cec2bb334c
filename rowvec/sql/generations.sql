-- name: identities -- of all generations
SELECT identity FROM rowvec.pipelines WHERE pipeline_id = ANY (rowvec.generations(%(pipeline_id)s))

-- name: of_family -- newest first
SELECT pipeline_id, name, generation, state, table_schema, table_name, identity, settings, created_at, switched_at
FROM rowvec.pipelines
WHERE family = %(family)s
ORDER BY generation DESC

-- name: set_state
UPDATE rowvec.pipelines SET state = %(state)s WHERE pipeline_id = %(pipeline_id)s

-- name: build -- where its row is there by now; else its first run makes it so
UPDATE rowvec.pipelines SET state = 'building' WHERE name = %(name)s

-- name: in_the_way -- what stands on the table by its identity, and would stay with the old one; ours does not
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

-- name: user_indexes -- those that are neither keys nor on vectors: a filter may need them
SELECT c.relname, pg_get_indexdef(c.oid), quote_ident(c.relname)
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid
JOIN pg_am AS am ON am.oid = c.relam
WHERE i.indrelid = to_regclass(%(table)s) AND am.amname NOT IN ('hnsw', 'ivfflat')
  AND i.indisvalid AND NOT i.indisprimary
  AND NOT EXISTS (SELECT FROM pg_constraint AS k WHERE k.conindid = i.indexrelid)

-- name: qualified -- as pg_get_indexdef writes it
SELECT format('%%I.%%I', %(schema)s::text, %(table)s::text)

-- name: is_there
SELECT to_regclass(%(table)s) IS NOT NULL

-- name: keep -- as merge.keep: autovacuum goes, and no reader or writer waits for that
SET LOCAL lock_timeout = '5s';
LOCK TABLE {live}, {next} IN SHARE UPDATE EXCLUSIVE MODE

-- name: lock -- one that waits for ACCESS EXCLUSIVE keeps all readers waiting behind it, so not for long
SET LOCAL lock_timeout = '300ms';
LOCK TABLE {live}, {next} IN ACCESS EXCLUSIVE MODE

-- name: rename
ALTER TABLE {table} RENAME TO {name}

-- name: grants -- the privileges on a table, as statements' parts
SELECT a.privilege_type, a.is_grantable, coalesce(r.rolname, '')
FROM pg_class AS c
CROSS JOIN aclexplode(c.relacl) AS a
LEFT JOIN pg_roles AS r ON r.oid = a.grantee
WHERE c.oid = to_regclass(%(table)s) AND a.grantee <> c.relowner

-- name: grant
GRANT {privilege} ON {table} TO {grantee} {with_option}

-- name: owner -- of the table that is read, if it is not the one who builds
SELECT pg_get_userbyid(c.relowner), obj_description(c.oid, 'pg_class')
FROM pg_class AS c WHERE c.oid = to_regclass(%(table)s)

-- name: own
ALTER TABLE {table} OWNER TO {owner}

-- name: comment
COMMENT ON TABLE {table} IS {text}

-- name: move_row -- to another name and table; the names are unique, so the one that makes room goes first
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

-- name: drop_functions -- ours of a table that is renamed or gone, told by their comments
SELECT format('DROP %%s %%s', CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END, p.oid::regprocedure)
FROM pg_proc AS p
WHERE p.pronamespace = to_regnamespace(%(schema)s) AND p.proname = ANY (%(names)s)
  AND obj_description(p.oid, 'pg_proc') LIKE 'rowvec: %%'

-- name: drop_views
SELECT format('DROP VIEW %%s', c.oid::regclass)
FROM pg_class AS c
WHERE c.relnamespace = to_regnamespace(%(schema)s) AND c.relkind = 'v' AND c.relname = ANY (%(names)s)
  AND obj_description(c.oid, 'pg_class') LIKE 'rowvec: %%'

-- name: pairs -- rows that both generations have, with the vector each gives them
SELECT {key}, {live_send}(l.embedding), {next_send}(n.embedding)
FROM {live} AS l TABLESAMPLE SYSTEM ({percent}) REPEATABLE ({seed})
JOIN {next} AS n ON {same_key}
WHERE {live_norm}(l.embedding) <> 0 AND {next_norm}(n.embedding) <> 0
ORDER BY hashtextextended({key_text}, {seed})
LIMIT {limit}

-- name: forget_plan_only -- a generation that was only planned
UPDATE rowvec.pipelines SET state = 'dropped'
WHERE pipeline_id = %(pipeline_id)s AND state = 'building' AND to_regclass(%(table)s) IS NULL
