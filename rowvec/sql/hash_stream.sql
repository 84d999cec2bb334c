-- name: sorted -- rows as hashes, in the order in which the diff wants them, all whose digests begin alike as one record:
-- a client takes a record of fifteen rows as fast as one of one. A hash that is NULL or of another length leaves its
-- row out, so that the count does not fit.
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
