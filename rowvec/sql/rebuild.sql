-- name: pairs -- rows that both generations have, with their vector in each
SELECT {key}, {pgvector}.{live_send}(l.embedding), {pgvector}.{next_send}(n.embedding)
FROM {live} AS l TABLESAMPLE SYSTEM ({percent}) REPEATABLE ({seed})
JOIN {next} AS n ON {same_key}
WHERE {pgvector}.{live_norm}(l.embedding) <> 0 AND {pgvector}.{next_norm}(n.embedding) <> 0
ORDER BY hashtextextended({key_text}, {seed})
LIMIT {limit}
