-- name: count
SELECT count(*) FROM {table} AS s WHERE {which}

-- name: from -- a range of places is read without reading the rest of the table
{which} AND s.ctid >= {first}::tid

-- name: between
{which} AND s.ctid >= {first}::tid AND s.ctid < {end}::tid

-- name: middle
SELECT s.ctid::text FROM {table} AS s WHERE {within} ORDER BY s.ctid OFFSET {half} LIMIT 1
