-- name: of_function -- who may call a function: privilege, role, whether the role may pass it on
SELECT a.privilege_type, r.rolname::text, a.is_grantable
FROM pg_proc AS p
CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
LEFT JOIN pg_roles AS r ON r.oid = a.grantee
WHERE p.oid = {object}::regprocedure AND (a.grantee = 0 OR r.oid IS NOT NULL)
ORDER BY 1, 2

-- name: of_view
SELECT a.privilege_type, r.rolname::text, a.is_grantable
FROM pg_class AS c
CROSS JOIN LATERAL aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS a
LEFT JOIN pg_roles AS r ON r.oid = a.grantee
WHERE c.oid = {object}::regclass AND (a.grantee = 0 OR r.oid IS NOT NULL)
ORDER BY 1, 2

-- name: revoke
REVOKE ALL ON {object} FROM {role}

-- name: grant
GRANT {privilege} ON {object} TO {role} {option}
