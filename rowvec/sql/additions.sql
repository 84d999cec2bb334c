-- name: pin_names -- expressions are then written with the schema of every name that is not in pg_catalog
SELECT set_config('search_path', 'pg_catalog, pg_temp', true)

-- name: catalog -- the whole catalog entry of a table: what each fact is, its value, and the DDL that gives it to a table
-- The DDL is head, a name for the new object, tail; without a tail, it is the head alone. NULL: no DDL is known for it.
-- unmake is the DDL that takes a fact from the table itself.
-- jsonb_each lists all columns of a catalog, so that a column of a later Postgres is compared too.
WITH t AS (
    SELECT c.*, format('%%I.%%I', n.nspname, c.relname) AS written, quote_ident(n.nspname) AS nsp
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = to_regclass(%(table)s)
), own AS (
    SELECT a.* FROM pg_attribute AS a JOIN t ON a.attrelid = t.oid
    WHERE a.attnum > 0 AND NOT a.attisdropped AND a.attname = ANY (%(columns)s)
), options AS (
    SELECT 'reloptions' AS name, t.reloptions AS options, '' AS prefix FROM t
    UNION ALL
    SELECT 'toast.reloptions', toast.reloptions, 'toast.' FROM t LEFT JOIN pg_class AS toast ON toast.oid = t.reltoastrelid
), indexes AS (
    SELECT i.*, c.relname, c.reltablespace, k.oid AS constraint_oid, k.conname,
        CASE WHEN k.oid IS NOT NULL THEN pg_get_constraintdef(k.oid)
             ELSE substr(pg_get_indexdef(c.oid), length(format(
                 'CREATE %%sINDEX %%I ON %%s%%s', CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, c.relname,
                 -- An index of a table that is split, which its partitions have too.
                 CASE WHEN c.relkind = 'I' THEN 'ONLY ' ELSE '' END, t.written)) + 1)
        END AS body
    FROM t
    JOIN pg_index AS i ON i.indrelid = t.oid
    JOIN pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_am AS am ON am.oid = c.relam
    LEFT JOIN pg_constraint AS k ON k.conindid = c.oid AND k.conrelid = t.oid
    WHERE i.indisvalid AND NOT i.indisprimary
      AND NOT (am.amname = ANY (%(methods)s) AND i.indpred IS NULL)
      AND NOT (am.amname = 'gin' AND c.relname LIKE '%%\_rowvec\_text\_%%')
), statistics AS (
    SELECT s.*, n.nspname,
        left(substr(d.definition, length(format('CREATE STATISTICS %%I.%%I', n.nspname, s.stxname)) + 1),
             -length(' FROM ' || t.written)) AS body
    FROM t
    JOIN pg_statistic_ext AS s ON s.stxrelid = t.oid
    JOIN pg_namespace AS n ON n.oid = s.stxnamespace
    CROSS JOIN LATERAL (SELECT pg_get_statisticsobjdef(s.oid) AS definition) AS d
), policies AS (
    SELECT p.*, pg_get_expr(p.polqual, p.polrelid) AS qual, pg_get_expr(p.polwithcheck, p.polrelid) AS checked,
        (SELECT string_agg(CASE role WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(role)) END, ', ' ORDER BY role)
         FROM unnest(p.polroles) AS role) AS roles
    FROM t JOIN pg_policy AS p ON p.polrelid = t.oid
), checks AS (
    SELECT k.*, pg_get_constraintdef(k.oid) AS body
    FROM t JOIN pg_constraint AS k ON k.conrelid = t.oid AND k.contype = 'c'
), facts (rank, kind, name, value, head, tail, unmake) AS (
    -- Row level security comes first, privileges late, the owner last.
    SELECT 1, 'the setting', e.key, e.value #>> '{{}}',
        CASE e.key
            WHEN 'relrowsecurity' THEN format('ALTER TABLE %%s %%s ROW LEVEL SECURITY', %(into)s::text,
                CASE WHEN t.relrowsecurity THEN 'ENABLE' ELSE 'DISABLE' END)
            WHEN 'relforcerowsecurity' THEN format('ALTER TABLE %%s %%s ROW LEVEL SECURITY', %(into)s::text,
                CASE WHEN t.relforcerowsecurity THEN 'FORCE' ELSE 'NO FORCE' END)
            WHEN 'reltablespace' THEN format('ALTER TABLE %%s SET TABLESPACE %%I', %(into)s::text, coalesce(
                (SELECT spcname FROM pg_tablespace WHERE oid = t.reltablespace),
                (SELECT spcname FROM pg_tablespace JOIN pg_database ON dattablespace = pg_tablespace.oid
                 WHERE datname = current_database())))
        END, NULL, NULL
    FROM t
    CROSS JOIN LATERAL jsonb_each(to_jsonb(t) - ARRAY[
        'oid', 'relname', 'reltype', 'relfilenode', 'relpages', 'reltuples', 'relallvisible', 'relallfrozen',
        'reltoastrelid', 'relhasindex', 'relnatts', 'relchecks', 'relhasrules', 'relhastriggers', 'relhassubclass',
        'relrewrite', 'relfrozenxid', 'relminmxid', 'relreplident', 'relowner', 'relacl', 'reloptions', 'written', 'nsp',
        -- Whether a table is split is the pipeline's to say.
        'relkind', 'relam'
    ] || jsonb_build_object(
        'access method', (SELECT amname FROM pg_am WHERE oid = t.relam AND amname <> 'heap'))) AS e
    UNION ALL
    SELECT 2, 'the policy', polname, jsonb_build_array(polcmd, polpermissive, roles, qual, checked)::text,
        -- An expression that names the table itself would go on reading the old one.
        CASE WHEN position(t.written IN concat(qual, ' ', checked)) = 0 THEN format(
            'CREATE POLICY %%I ON %%s AS %%s FOR %%s TO %%s', polname, %(into)s::text,
            CASE WHEN polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
            CASE polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE'
                        ELSE 'ALL' END, roles)
            || coalesce(' USING (' || qual || ')', '') || coalesce(' WITH CHECK (' || checked || ')', '') END,
        NULL, NULL
    FROM policies CROSS JOIN t
    UNION ALL
    SELECT 3, 'the setting', name,
        (SELECT string_agg(o, ', ' ORDER BY o) FROM unnest(options) AS o),
        format('ALTER TABLE %%s SET (%%s)', %(into)s::text, (
            SELECT string_agg(format('%%s%%I=%%L', prefix, split_part(o, '=', 1), substr(o, position('=' IN o) + 1)), ', ')
            FROM unnest(options) AS o)),
        NULL, NULL
    FROM options
    UNION ALL
    SELECT 3, 'the column setting', format('%%s of %%I', e.key, own.attname), e.value #>> '{{}}',
        CASE e.key
            WHEN 'attnotnull' THEN format('ALTER TABLE %%s ALTER COLUMN %%I %%s NOT NULL', %(into)s::text, own.attname,
                CASE WHEN own.attnotnull THEN 'SET' ELSE 'DROP' END)
            WHEN 'attstorage' THEN format('ALTER TABLE %%s ALTER COLUMN %%I SET STORAGE %%s', %(into)s::text, own.attname,
                CASE own.attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN'
                                    ELSE 'EXTENDED' END)
            WHEN 'attcompression' THEN format('ALTER TABLE %%s ALTER COLUMN %%I SET COMPRESSION %%s', %(into)s::text,
                own.attname, CASE own.attcompression WHEN 'p' THEN 'pglz' WHEN 'l' THEN 'lz4' ELSE 'default' END)
            WHEN 'attstattarget' THEN format('ALTER TABLE %%s ALTER COLUMN %%I SET STATISTICS %%s', %(into)s::text,
                own.attname, coalesce(own.attstattarget, -1))
            WHEN 'attoptions' THEN format('ALTER TABLE %%s ALTER COLUMN %%I SET (%%s)', %(into)s::text, own.attname, (
                SELECT string_agg(format('%%I=%%L', split_part(o, '=', 1), substr(o, position('=' IN o) + 1)), ', ')
                FROM unnest(own.attoptions) AS o))
        END, NULL, NULL
    FROM own
    JOIN pg_type AS y ON y.oid = own.atttypid
    CROSS JOIN LATERAL jsonb_each(to_jsonb(own) - ARRAY[
        'attrelid', 'attnum', 'attname', 'atttypid', 'atttypmod', 'attlen', 'attbyval', 'attalign', 'attndims',
        'attcacheoff', 'atthasdef', 'atthasmissing', 'attmissingval', 'attacl', 'attstorage', 'attcollation'
    ] - CASE WHEN own.attname = ANY (%(key)s) THEN 'attnotnull' ELSE '' END || jsonb_build_object(
        'attstorage', nullif(own.attstorage, y.typstorage), 'attcollation', nullif(own.attcollation, y.typcollation)
    )) AS e
    UNION ALL
    SELECT 3, 'the default of the column', quote_ident(own.attname), pg_get_expr(d.adbin, d.adrelid),
        format('ALTER TABLE %%s ALTER COLUMN %%I SET DEFAULT %%s', %(into)s::text, own.attname,
            pg_get_expr(d.adbin, d.adrelid)), NULL,
        format('ALTER TABLE %%s ALTER COLUMN %%I DROP DEFAULT', t.written, own.attname)
    FROM t CROSS JOIN own JOIN pg_attrdef AS d ON d.adrelid = own.attrelid AND d.adnum = own.attnum
    UNION ALL
    SELECT 4, 'the constraint', conname, body,
        CASE WHEN position(t.written IN body) = 0
             THEN format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', %(into)s::text, conname, body) END, NULL, NULL
    FROM checks CROSS JOIN t
    UNION ALL
    SELECT 4, CASE WHEN constraint_oid IS NULL THEN 'the index' ELSE 'the constraint' END, relname,
        jsonb_build_array(body, indisunique, reltablespace)::text,
        CASE WHEN reltablespace <> 0 THEN NULL
             WHEN constraint_oid IS NOT NULL THEN format('ALTER TABLE %%s ADD CONSTRAINT ', %(into)s::text)
             ELSE format('CREATE %%sINDEX ', CASE WHEN indisunique THEN 'UNIQUE ' ELSE '' END) END,
        CASE WHEN constraint_oid IS NOT NULL THEN ' ' || body ELSE format(' ON %%s%%s', %(into)s::text, body) END, NULL
    FROM indexes
    UNION ALL
    SELECT 4, 'the extended statistics', stxname, jsonb_build_array(body, stxstattarget)::text,
        CASE WHEN coalesce(stxstattarget, -1) = -1 THEN format('CREATE STATISTICS %%I.', nspname) END,
        format('%%s FROM %%s', body, %(into)s::text), NULL
    FROM statistics
    UNION ALL
    SELECT 5, 'the clustering on the index', relname, body,
        format('ALTER TABLE %%s CLUSTER ON ', %(into)s::text), '', NULL
    FROM indexes WHERE indisclustered
    UNION ALL
    SELECT 5, 'the replica identity', coalesce(x.relname, ''), concat(t.relreplident, ' ', x.body),
        CASE t.relreplident
            WHEN 'd' THEN format('ALTER TABLE %%s REPLICA IDENTITY DEFAULT', %(into)s::text)
            WHEN 'f' THEN format('ALTER TABLE %%s REPLICA IDENTITY FULL', %(into)s::text)
            WHEN 'n' THEN format('ALTER TABLE %%s REPLICA IDENTITY NOTHING', %(into)s::text)
            WHEN 'i' THEN CASE WHEN x.body IS NOT NULL
                THEN format('ALTER TABLE %%s REPLICA IDENTITY USING INDEX ', %(into)s::text) END
        END, CASE WHEN t.relreplident = 'i' THEN '' END, NULL
    FROM t LEFT JOIN indexes AS x ON x.indisreplident AND t.relreplident = 'i'
    UNION ALL
    SELECT 6, 'the comment on', CASE WHEN d.objsubid = 0 THEN 'the table' ELSE quote_ident(own.attname) END, d.description,
        format('COMMENT ON %%s IS %%L', made.named, d.description), NULL, format('COMMENT ON %%s IS NULL', there.named)
    FROM t
    JOIN pg_description AS d ON d.classoid = 'pg_class'::regclass AND d.objoid = t.oid
    LEFT JOIN own ON own.attnum = d.objsubid
    CROSS JOIN LATERAL (SELECT CASE WHEN d.objsubid = 0 THEN 'TABLE ' || %(into)s::text
        ELSE format('COLUMN %%s.%%I', %(into)s::text, own.attname) END) AS made (named)
    CROSS JOIN LATERAL (SELECT CASE WHEN d.objsubid = 0 THEN 'TABLE ' || t.written
        ELSE format('COLUMN %%s.%%I', t.written, own.attname) END) AS there (named)
    WHERE d.objsubid = 0 OR own.attnum IS NOT NULL
    UNION ALL
    SELECT 6, 'the comment on the policy', polname, d.description,
        format('COMMENT ON POLICY %%I ON %%s IS %%L', polname, %(into)s::text, d.description), NULL, NULL
    FROM policies AS p JOIN pg_description AS d ON d.classoid = 'pg_policy'::regclass AND d.objoid = p.oid
    UNION ALL
    SELECT 6, 'the comment on the constraint', conname, d.description,
        format('COMMENT ON CONSTRAINT %%I ON %%s IS %%L', conname, %(into)s::text, d.description), NULL, NULL
    FROM checks AS k JOIN pg_description AS d ON d.classoid = 'pg_constraint'::regclass AND d.objoid = k.oid
    UNION ALL
    SELECT 6, 'the comment on the constraint', relname, jsonb_build_array(body, d.description)::text,
        'COMMENT ON CONSTRAINT ', format(' ON %%s IS %%L', %(into)s::text, d.description), NULL
    FROM indexes AS x JOIN pg_description AS d ON d.classoid = 'pg_constraint'::regclass AND d.objoid = x.constraint_oid
    UNION ALL
    SELECT 6, 'the comment on the index', x.relname, jsonb_build_array(body, d.description)::text,
        format('COMMENT ON INDEX %%s.', t.nsp), format(' IS %%L', d.description), NULL
    FROM indexes AS x CROSS JOIN t
    JOIN pg_description AS d ON d.classoid = 'pg_class'::regclass AND d.objoid = x.indexrelid
    UNION ALL
    SELECT 6, 'the comment on the extended statistics', stxname, jsonb_build_array(body, d.description)::text,
        format('COMMENT ON STATISTICS %%I.', nspname), format(' IS %%L', d.description), NULL
    FROM statistics AS s JOIN pg_description AS d ON d.classoid = 'pg_statistic_ext'::regclass AND d.objoid = s.oid
    UNION ALL
    SELECT 6, 'the statistics target of the index', x.relname, jsonb_build_array(body, a.attnum, a.attstattarget)::text,
        'ALTER INDEX ' || t.nsp || '.', format(' ALTER COLUMN %%s SET STATISTICS %%s', a.attnum, a.attstattarget), NULL
    FROM indexes AS x CROSS JOIN t
    JOIN pg_attribute AS a ON a.attrelid = x.indexrelid AND coalesce(a.attstattarget, -1) <> -1
    UNION ALL
    SELECT 7, 'the privilege', format('%%s of %%s', a.privilege_type, r.quoted),
        jsonb_build_array(a.is_grantable, a.grantor = t.relowner)::text,
        format('GRANT %%s ON %%s TO %%s%%s', a.privilege_type, %(into)s::text, r.quoted,
            CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END), NULL,
        format('REVOKE %%s ON %%s FROM %%s CASCADE', a.privilege_type, t.written, r.quoted)
    FROM t
    CROSS JOIN LATERAL aclexplode(coalesce(t.relacl, acldefault('r', t.relowner))) AS a
    CROSS JOIN LATERAL (SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
        AS r (quoted)
    WHERE a.grantee <> t.relowner
    UNION ALL
    -- What the owner took from itself: reading the table is then an error for it.
    SELECT 9, 'the missing privilege', a.privilege_type || ' of the owner', '',
        format('REVOKE %%s ON %%s FROM %%I', a.privilege_type, %(into)s::text, pg_get_userbyid(t.relowner)), NULL,
        format('GRANT %%s ON %%s TO %%I', a.privilege_type, t.written, pg_get_userbyid(t.relowner))
    FROM t
    CROSS JOIN LATERAL aclexplode(acldefault('r', t.relowner)) AS a
    WHERE NOT EXISTS (
        SELECT FROM aclexplode(coalesce(t.relacl, acldefault('r', t.relowner))) AS held
        WHERE held.grantee = t.relowner AND held.privilege_type = a.privilege_type)
    UNION ALL
    SELECT 7, 'the privilege', format('%%s (%%I) of %%s', a.privilege_type, own.attname, r.quoted),
        jsonb_build_array(a.is_grantable, a.grantor = t.relowner)::text,
        format('GRANT %%s (%%I) ON %%s TO %%s%%s', a.privilege_type, own.attname, %(into)s::text, r.quoted,
            CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END), NULL,
        format('REVOKE %%s (%%I) ON %%s FROM %%s CASCADE', a.privilege_type, own.attname, t.written, r.quoted)
    FROM own CROSS JOIN t
    CROSS JOIN LATERAL aclexplode(own.attacl) AS a
    CROSS JOIN LATERAL (SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END)
        AS r (quoted)
    UNION ALL
    SELECT 8, 'the owner', '', pg_get_userbyid(t.relowner),
        format('ALTER TABLE %%s OWNER TO %%I', %(into)s::text, pg_get_userbyid(t.relowner)), NULL, NULL
    FROM t
    UNION ALL
    -- From here on there is no DDL: a table with one of these is refused.
    SELECT 0, 'the inheritance from', inhparent::regclass::text, '', NULL, NULL, NULL
    FROM t JOIN pg_inherits ON inhrelid = t.oid
    UNION ALL
    SELECT 0, 'the security label', concat(l.provider, ' ', own.attname), l.label, NULL, NULL, NULL
    FROM t
    JOIN pg_seclabel AS l ON l.classoid = 'pg_class'::regclass AND l.objoid = t.oid
    LEFT JOIN own ON own.attnum = l.objsubid
    WHERE l.objsubid = 0 OR own.attnum IS NOT NULL
    UNION ALL
    SELECT 0, 'the subscription', s.srsubid::text, '', NULL, NULL, NULL
    FROM t JOIN pg_subscription_rel AS s ON s.srrelid = t.oid
    UNION ALL
    SELECT 0, 'the dependency on', pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid), d.deptype::text,
        NULL, NULL, NULL
    FROM t JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = t.oid
    WHERE d.refclassid NOT IN ('pg_namespace'::regclass, 'pg_type'::regclass, 'pg_am'::regclass, 'pg_collation'::regclass)
      -- The columns that a table is split by depend on the table itself.
      AND NOT (d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid)
)
SELECT kind, name, value, head, tail, unmake FROM facts ORDER BY rank, kind, name

-- name: bound -- all objects that depend on a table or its row type, except its own parts, which the catalog block lists
-- A kind of object that this version of rowvec does not know is in this list.
SELECT DISTINCT 'the ' || CASE
    WHEN view.oid IS NOT NULL AND view.oid <> t.oid THEN pg_describe_object('pg_class'::regclass, view.oid, 0)
    ELSE coalesce(pg_describe_object(d.classid, d.objid, d.objsubid), format('object %%s of %%s', d.objid, d.classid::regclass))
    END
FROM pg_class AS t
JOIN pg_depend AS d
  ON (d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid)
  OR (d.refclassid = 'pg_type'::regclass
      AND d.refobjid IN (t.reltype, (SELECT typarray FROM pg_type WHERE oid = t.reltype)))
LEFT JOIN pg_rewrite AS rule ON d.classid = 'pg_rewrite'::regclass AND rule.oid = d.objid
LEFT JOIN pg_class AS view ON view.oid = rule.ev_class
WHERE t.oid = to_regclass(%(table)s)
  AND NOT (d.classid = 'pg_class'::regclass AND (d.objid IN (t.oid, t.reltoastrelid)
      OR EXISTS (
          SELECT FROM pg_inherits AS p JOIN pg_class AS part ON part.oid = p.inhrelid AND part.relispartition
          WHERE p.inhrelid = d.objid AND p.inhparent = t.oid)
      OR EXISTS (SELECT FROM pg_index AS i WHERE i.indexrelid = d.objid AND i.indrelid = t.oid)))
  AND NOT (d.classid = 'pg_type'::regclass
      AND d.objid IN (t.reltype, (SELECT typarray FROM pg_type WHERE oid = t.reltype)))
  AND NOT (d.classid = 'pg_constraint'::regclass AND EXISTS (
      SELECT FROM pg_constraint AS k
      WHERE k.oid = d.objid AND k.conrelid = t.oid AND k.contype IN ('p', 'u', 'x', 'c', 'n')))
  AND NOT (d.classid = 'pg_policy'::regclass
      AND EXISTS (SELECT FROM pg_policy AS p WHERE p.oid = d.objid AND p.polrelid = t.oid))
  AND NOT (d.classid = 'pg_statistic_ext'::regclass
      AND EXISTS (SELECT FROM pg_statistic_ext AS s WHERE s.oid = d.objid AND s.stxrelid = t.oid))
  AND NOT (d.classid = 'pg_attrdef'::regclass
      AND EXISTS (SELECT FROM pg_attrdef AS a WHERE a.oid = d.objid AND a.adrelid = t.oid))
  AND NOT (d.classid = 'pg_trigger'::regclass
      AND EXISTS (SELECT FROM pg_trigger AS g WHERE g.oid = d.objid AND g.tgisinternal))
ORDER BY 1

-- name: on_columns -- the user's objects on columns that the next table has in another type, or not at all
SELECT DISTINCT 'the ' || pg_describe_object(d.classid, d.objid, d.objsubid), a.attname
FROM pg_attribute AS a
JOIN pg_depend AS d
  ON d.refclassid = 'pg_class'::regclass AND d.refobjid = a.attrelid AND d.refobjsubid = a.attnum
LEFT JOIN pg_index AS i ON d.classid = 'pg_class'::regclass AND i.indexrelid = d.objid
LEFT JOIN pg_class AS x ON x.oid = i.indexrelid
LEFT JOIN pg_am AS am ON am.oid = x.relam
LEFT JOIN pg_constraint AS k ON d.classid = 'pg_constraint'::regclass AND k.oid = d.objid
WHERE a.attrelid = to_regclass(%(table)s) AND a.attname = ANY (%(columns)s)
  AND NOT coalesce(i.indisprimary, false)
  AND NOT coalesce(am.amname = ANY (%(methods)s) AND i.indpred IS NULL, false)
  AND NOT coalesce(am.amname = 'gin' AND x.relname LIKE '%%\_rowvec\_text\_%%', false)
  AND coalesce(k.contype, 'c') NOT IN ('p', 'n')
  AND NOT (d.classid = 'pg_attrdef'::regclass AND a.attname = ANY (%(gone)s))
ORDER BY 1

-- name: probe -- an empty table on which the DDL is tried, in a transaction that is rolled back
CREATE TABLE {table} ({columns}, PRIMARY KEY ({key})) {split}

-- name: rename_index
ALTER INDEX {index} RENAME TO {name}

-- name: rename_statistics
ALTER STATISTICS {statistics} RENAME TO {name}

-- name: statistics_schema
SELECT n.nspname
FROM pg_statistic_ext AS s JOIN pg_namespace AS n ON n.oid = s.stxnamespace
WHERE s.stxrelid = to_regclass(%(table)s) AND s.stxname = %(name)s

-- name: taken -- whether a name is free for a table: a relation and a type each take one
SELECT 'the ' || pg_describe_object('pg_class'::regclass, c.oid, 0) FROM pg_class AS c
WHERE c.relnamespace = to_regnamespace(%(schema)s) AND c.relname = %(name)s
UNION ALL
SELECT 'the ' || pg_describe_object('pg_type'::regclass, y.oid, 0) FROM pg_type AS y
WHERE y.typnamespace = to_regnamespace(%(schema)s) AND y.typname = %(name)s
LIMIT 1

-- name: name_taken -- whether a name is taken in the schema of a table, by a relation or by statistics
SELECT EXISTS (SELECT FROM pg_class AS c WHERE c.relnamespace = t.relnamespace AND c.relname = %(name)s)
    OR EXISTS (SELECT FROM pg_statistic_ext AS s WHERE s.stxname = %(name)s)
FROM pg_class AS t WHERE t.oid = to_regclass(%(table)s)
