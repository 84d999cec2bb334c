-- name: lock -- one process at a time; taken before the snapshot, which then shows what the other process did
LOCK TABLE {chunks} IN SHARE ROW EXCLUSIVE MODE

-- name: stored_pairs -- the rows that are split, each by its first chunk
SELECT {digest} AS digest, rowvec_row AS fingerprint, {metadata_hash} AS metadata_hash FROM {chunks} WHERE chunk = 0

-- name: forget_gone
DELETE FROM {chunks} WHERE {digest} IN (SELECT digest FROM gone)

-- name: forget_changed
DELETE FROM {chunks} AS t USING taken AS d WHERE d.rowvec_action = 'changed' AND {same_row}

-- name: update_metadata
UPDATE {chunks} AS t SET {assignments} FROM taken AS d WHERE d.rowvec_action = 'metadata_only' AND {same_row}

-- name: taken
SELECT {columns}, content, fingerprint FROM taken WHERE rowvec_action <> 'metadata_only'
