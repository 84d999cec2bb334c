-- name: long_keys -- the planned rows whose key may be too long for an entry of its index
CREATE TEMP TABLE long_keys ON COMMIT DROP AS
SELECT {key}, p.fingerprint, p.metadata_hash FROM {plan} AS p WHERE p.rowvec_action <> 'deleted' AND {length} > {long}

-- name: key_index -- an index like that of the vector table
CREATE TEMP TABLE key_index ON COMMIT DROP AS SELECT {key} FROM pg_temp.long_keys WHERE false;
ALTER TABLE pg_temp.key_index ADD PRIMARY KEY ({key})

-- name: index_keys
INSERT INTO pg_temp.key_index SELECT {key} FROM pg_temp.long_keys AS s WHERE {within}

-- name: drop_key_index
DROP TABLE pg_temp.key_index

-- name: drop_long_keys
DROP TABLE pg_temp.long_keys

-- name: unplan_key -- the row is not embedded, and stays in the plan, so that its old version is deleted
UPDATE {plan} AS p SET rowvec_batch = NULL FROM pg_temp.long_keys AS s WHERE {within} AND {same_key}

-- name: unplan
UPDATE {plan} AS s SET rowvec_batch = NULL WHERE {within}

-- name: count_words
SELECT count(length(to_tsvector({language}::regconfig, s.content))) FROM {table} AS s WHERE {within}

-- name: wordy -- rows of the vector table that an index of words may have no room for
CREATE TEMP TABLE wordy ON COMMIT DROP AS
SELECT {key}, fingerprint, metadata_hash, content FROM {table} AS s WHERE {long}

-- name: wordy_keys
SELECT {key} FROM pg_temp.wordy AS s JOIN rowvec.rejects AS r ON r.key = {key_json} AND r.fingerprint = s.fingerprint
WHERE r.pipeline_id = {pipeline_id} AND r.run_id = {run_id} AND r.reason = 'refused'

-- name: drop_wordy
DROP TABLE pg_temp.wordy
