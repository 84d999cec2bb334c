-- name: sorted -- rows as hashes, in the order that the diff needs; all rows whose digests begin alike are one record
-- A client reads a record of fifteen rows as fast as a record of one row. A row with a hash that is NULL or has another
-- length is left out, so the count does not match and the client raises an error.
COPY (
    SELECT count(*), string_agg(CASE WHEN octet_length(pair) = 80 THEN pair END, ''::bytea ORDER BY pair)
    FROM (
        SELECT substring(digest FROM 1 FOR 2) AS beginning, digest || fingerprint || metadata_hash AS pair
        FROM ({pairs}) AS p
        ORDER BY 1, 2
    ) AS ascending
    GROUP BY beginning
    ORDER BY beginning
) TO STDOUT (FORMAT binary)
