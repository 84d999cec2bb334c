-- name: bytes -- as they are: from no encoding to none, nothing is converted and nothing checked
convert_to({text}, 'SQL_ASCII'::name)

-- name: is_utf8 -- most texts are ASCII, which the first test finds without a copy
coalesce({text} !~ '[^\x01-\x7f]'::text OR encode({bytes}, 'hex'::text) ~ {utf8}::text, true)

-- name: escaped -- bytes that are not UTF-8 as octal numbers, and each backslash twice
CASE WHEN {is_utf8} THEN {text} ELSE encode({bytes}, 'escape'::text) END

-- name: readable
(SELECT * FROM {relation} AS source WHERE {readable})

-- name: unreadable
SELECT DISTINCT ON (key) key, detail
FROM (
    SELECT
        {key_json} AS key,
        'not UTF-8, in a database that has no encoding: ' || concat_ws(', '::text, {broken}) AS detail
    FROM {relation} AS source
    WHERE NOT ({readable})
) AS found
