-- name: of_family -- all generations of a pipeline, newest first
SELECT pipeline_id, name, generation, state, table_schema, table_name, identity, settings, created_at,
    (SELECT max(r.run_id) FROM rowvec.runs AS r WHERE r.pipeline_id = p.pipeline_id)
FROM rowvec.pipelines AS p
WHERE family = %(family)s
ORDER BY generation DESC

-- name: ledger_exists -- a search function may be installed on a table that no ledger knows
SELECT to_regclass('rowvec.pipelines') IS NOT NULL

-- name: before -- the generation that was read before this table, if its table is kept
SELECT old.table_name, (old.identity ->> 'dimensions')::int
FROM rowvec.pipelines AS live
JOIN rowvec.pipelines AS old USING (family)
WHERE live.table_schema = %(schema)s AND live.table_name = %(table)s AND live.state = 'live' AND old.state = 'retired'
ORDER BY old.switched_at DESC
LIMIT 1

-- name: default_privileges -- statements that take from others what they hold on the table of a generation that is not live
SELECT DISTINCT format('REVOKE ALL ON %%I.%%I FROM %%s CASCADE', n.nspname, c.relname,
    CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
FROM rowvec.pipelines AS p
JOIN pg_namespace AS n ON n.nspname = p.table_schema
JOIN pg_class AS c ON c.relnamespace = n.oid AND c.relname = p.table_name
CROSS JOIN LATERAL aclexplode(c.relacl) AS a
WHERE p.table_schema = %(schema)s AND p.table_name = %(table)s AND p.state <> 'live' AND a.grantee <> c.relowner
