-- name: lock -- one process at a time installs or migrates
SELECT pg_advisory_xact_lock(%(lock)s)

-- name: extension -- pgvector, if it is not installed yet; the role may lack the right to install it
CREATE EXTENSION IF NOT EXISTS vector SCHEMA {schema}

-- name: pgvector_version -- no row if pgvector is not installed
SELECT extversion FROM pg_extension WHERE extname = 'vector'

-- name: has_version_table
SELECT to_regclass('rowvec.migrations') IS NOT NULL

-- name: newest_migration
SELECT coalesce(max(number), 0) FROM rowvec.migrations

-- name: note_migration
INSERT INTO rowvec.migrations (number) VALUES (%(number)s)

-- name: has_schema
SELECT 1 FROM pg_namespace WHERE nspname = 'rowvec'

-- name: create_schema
CREATE SCHEMA rowvec

-- name: version_table -- which migrations this database has had
CREATE TABLE IF NOT EXISTS rowvec.migrations (
    number int PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- name: migration_1 -- the ledger: pipelines, runs, plans, artifacts, rejects
CREATE TABLE rowvec.pipelines (
    pipeline_id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    table_schema text NOT NULL,
    table_name text NOT NULL,
    identity jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (table_schema, table_name)
);
COMMENT ON TABLE rowvec.pipelines IS 'One row per generation of a pipeline: its vector table, and the embedder its vectors come from.';

CREATE TABLE rowvec.runs (
    run_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline_id int NOT NULL REFERENCES rowvec.pipelines,
    cause text NOT NULL,
    state text NOT NULL DEFAULT 'running' CHECK (state IN ('planned', 'running', 'succeeded', 'failed', 'abandoned')),
    started_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz,
    merged_at timestamptz,
    report jsonb,
    checks jsonb,
    manifest text,
    manifest_sha256 text,
    error text
);
CREATE INDEX runs_of_pipeline ON rowvec.runs (pipeline_id, run_id);
COMMENT ON TABLE rowvec.runs IS 'One row per run: what it did, what it cost, and whether it left the table consistent.';

CREATE TABLE rowvec.plans (
    run_id bigint PRIMARY KEY REFERENCES rowvec.runs ON DELETE CASCADE,
    layout jsonb NOT NULL,
    counts jsonb NOT NULL,
    batches int NOT NULL,
    direct boolean NOT NULL,
    planned_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE rowvec.plans IS 'A plan''s totals; its rows are in rowvec.plan_<run_id> until the run has merged.';

CREATE TABLE rowvec.artifacts (
    artifact_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline_id int NOT NULL REFERENCES rowvec.pipelines,
    run_id bigint NOT NULL REFERENCES rowvec.runs,
    batch int NOT NULL,
    name text NOT NULL,
    sha256 text NOT NULL,
    rows bigint NOT NULL,
    bytes bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (pipeline_id, name)
);
COMMENT ON TABLE rowvec.artifacts IS 'The Parquet objects that hold what was paid for.';

CREATE TABLE rowvec.embeddings (
    pipeline_id int NOT NULL,
    fingerprint bytea NOT NULL,
    artifact_id bigint NOT NULL REFERENCES rowvec.artifacts ON DELETE CASCADE,
    PRIMARY KEY (pipeline_id, fingerprint)
);
CREATE INDEX embeddings_of_artifact ON rowvec.embeddings (artifact_id);
COMMENT ON TABLE rowvec.embeddings IS 'Which artifact holds the vector of a fingerprint.';

CREATE TABLE rowvec.answers (
    pipeline_id int NOT NULL,
    fingerprint bytea NOT NULL,
    embedding bytea NOT NULL,
    run_id bigint NOT NULL,
    answered_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (pipeline_id, fingerprint)
);
-- float32 vectors do not compress; trying costs CPU for nothing.
ALTER TABLE rowvec.answers ALTER COLUMN embedding SET STORAGE EXTERNAL;
COMMENT ON TABLE rowvec.answers IS 'Paid answers whose artifact is not written yet (float32, little-endian).';

CREATE TABLE rowvec.rejects (
    pipeline_id int NOT NULL REFERENCES rowvec.pipelines,
    key jsonb NOT NULL,
    fingerprint bytea,
    reason text NOT NULL,
    detail text NOT NULL,
    attempts int NOT NULL DEFAULT 1,
    first_seen timestamptz NOT NULL DEFAULT now(),
    last_seen timestamptz NOT NULL DEFAULT now(),
    run_id bigint NOT NULL,
    PRIMARY KEY (pipeline_id, key)
);
COMMENT ON TABLE rowvec.rejects IS 'Rejected rows, which cannot be embedded. A sync tries them again when their content changes, or on request.';

CREATE TABLE rowvec.loaded (
    run_id bigint NOT NULL REFERENCES rowvec.runs ON DELETE CASCADE,
    batch int NOT NULL,
    rows bigint NOT NULL,
    PRIMARY KEY (run_id, batch)
);
COMMENT ON TABLE rowvec.loaded IS 'Which batches of a run are in staging already.';

-- name: migration_2 -- the journal in the blob store, and what each vector cost
ALTER TABLE rowvec.pipelines
    ADD COLUMN journal_whole boolean NOT NULL DEFAULT true,
    ADD COLUMN journal_layout jsonb;
COMMENT ON COLUMN rowvec.pipelines.journal_whole IS
    'The next manifest must hold every row of the vector table, and not only what changed.';

ALTER TABLE rowvec.runs ADD COLUMN listed boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN rowvec.runs.listed IS 'Whether a manifest in the store lists it.';

ALTER TABLE rowvec.artifacts
    ADD COLUMN last_run_id bigint REFERENCES rowvec.runs,
    ADD COLUMN listed boolean NOT NULL DEFAULT false;
UPDATE rowvec.artifacts SET last_run_id = run_id;
ALTER TABLE rowvec.artifacts ALTER COLUMN last_run_id SET NOT NULL;
COMMENT ON COLUMN rowvec.artifacts.run_id IS 'The run that wrote it first.';
COMMENT ON COLUMN rowvec.artifacts.last_run_id IS 'The last run that loaded it: equal rows give equal bytes.';
COMMENT ON COLUMN rowvec.artifacts.listed IS 'Whether a manifest in the store names it.';

ALTER TABLE rowvec.embeddings ADD COLUMN run_id bigint, ADD COLUMN cost_usd real;
UPDATE rowvec.embeddings AS e SET run_id = a.run_id FROM rowvec.artifacts AS a WHERE a.artifact_id = e.artifact_id;
COMMENT ON COLUMN rowvec.embeddings.run_id IS 'The run that had it embedded.';
COMMENT ON COLUMN rowvec.embeddings.cost_usd IS 'Its share of what the provider''s answer cost.';

ALTER TABLE rowvec.answers ADD COLUMN tokens real NOT NULL DEFAULT 0;
COMMENT ON COLUMN rowvec.answers.tokens IS 'Its share of the tokens that the provider counted for the answer.';

-- name: migration_3 -- generations: several builds of one pipeline's vector table, of which one is live
ALTER TABLE rowvec.pipelines
    ADD COLUMN family text,
    ADD COLUMN generation int NOT NULL DEFAULT 1,
    ADD COLUMN state text NOT NULL DEFAULT 'live' CHECK (state IN ('live', 'building', 'retired', 'dropped')),
    ADD COLUMN settings jsonb,
    ADD COLUMN switched_at timestamptz,
    ADD COLUMN artifacts_lost boolean NOT NULL DEFAULT false;
UPDATE rowvec.pipelines SET family = name;
ALTER TABLE rowvec.pipelines ALTER COLUMN family SET NOT NULL;
CREATE UNIQUE INDEX one_live_generation ON rowvec.pipelines (family) WHERE state = 'live';
CREATE INDEX generations_of_family ON rowvec.pipelines (family);
COMMENT ON COLUMN rowvec.pipelines.family IS 'The name in the pipeline file: all generations of a vector table share it.';
COMMENT ON COLUMN rowvec.pipelines.artifacts_lost IS
    'The vector table may have vectors that no artifact holds any more; rowvec audit --repair writes new artifacts.';
COMMENT ON COLUMN rowvec.pipelines.settings IS 'The pipeline file as of the last run, references unresolved.';

CREATE FUNCTION rowvec.generations(int) RETURNS int[] LANGUAGE sql STABLE AS
    'SELECT array_agg(g.pipeline_id) FROM rowvec.pipelines AS p JOIN rowvec.pipelines AS g USING (family)
     WHERE p.pipeline_id = $1';
COMMENT ON FUNCTION rowvec.generations(int) IS 'All generations of a pipeline: each one reuses what another has paid for.';

-- name: migration_4 -- why and over which rows each index was built, what tuners measured, and the indexes' state
CREATE TABLE rowvec.index_builds (
    build_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    table_schema text NOT NULL,
    table_name text NOT NULL,
    index_name text NOT NULL,
    index_oid oid NOT NULL,
    choice jsonb NOT NULL,
    why text NOT NULL,
    reason text NOT NULL,
    rows bigint NOT NULL,
    newest_run bigint NOT NULL,
    seconds real,
    memory_needed bigint,
    memory_given bigint,
    spilled_after bigint,
    built_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    came bigint NOT NULL DEFAULT 0,
    went bigint NOT NULL DEFAULT 0,
    looked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    recall real,
    recall_low real,
    recall_high real,
    recall_k int,
    recall_queries int,
    recalled_at timestamptz,
    outcome text NOT NULL DEFAULT 'serves' CHECK (outcome IN ('serves', 'replaced', 'refused', 'gone'))
);
CREATE INDEX index_builds_of_table ON rowvec.index_builds (table_schema, table_name, build_id);
COMMENT ON TABLE rowvec.index_builds IS 'One row per index that was built: why, over which rows, and with what outcome.';
COMMENT ON COLUMN rowvec.index_builds.why IS
    'missing, invalid, other choice, outgrown, worn, recall, asked; found: it existed, and rowvec did not build it.';
COMMENT ON COLUMN rowvec.index_builds.newest_run IS 'Rows of later runs were added after it was built.';
COMMENT ON COLUMN rowvec.index_builds.spilled_after IS 'Vectors after which pgvector ran out of maintenance_work_mem.';
COMMENT ON COLUMN rowvec.index_builds.came IS 'Vectors added or changed since the build, when a run last looked.';
COMMENT ON COLUMN rowvec.index_builds.went IS 'Vectors of the build that were deleted or replaced, when a run last looked.';

CREATE TABLE rowvec.tunings (
    table_schema text NOT NULL,
    table_name text NOT NULL,
    layout jsonb NOT NULL,
    chosen jsonb NOT NULL,
    measured jsonb NOT NULL,
    skipped jsonb NOT NULL,
    rows bigint NOT NULL,
    sampled_rows bigint NOT NULL,
    queries int NOT NULL,
    k int NOT NULL,
    at_least real NOT NULL,
    seconds real NOT NULL,
    tuned_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (table_schema, table_name)
);
COMMENT ON TABLE rowvec.tunings IS 'What the last rowvec index --tune of a vector table measured, and what it chose.';

CREATE VIEW rowvec.indexes AS
WITH vector_tables AS (
    SELECT p.family AS pipeline, p.generation, p.state, n.nspname, t.relname, t.oid, t.reltuples
    FROM rowvec.pipelines AS p
    JOIN pg_namespace AS n ON n.nspname = p.table_schema
    JOIN pg_class AS t ON t.relnamespace = n.oid AND t.relname = p.table_name AND t.relkind IN ('r', 'p')
), present AS (
    SELECT i.indrelid, i.indexrelid, c.relname, am.amname, o.opcname, i.indisvalid AND i.indisready AS valid
    FROM pg_index AS i
    JOIN pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_am AS am ON am.oid = c.relam AND am.amname IN ('hnsw', 'ivfflat')
    JOIN pg_opclass AS o ON o.oid = i.indclass[0]
), building AS (
    -- A build without CONCURRENTLY has no index yet that other sessions could see.
    SELECT
        p.relid, p.index_relid, p.phase,
        100.0 * greatest(
            p.blocks_done::float / nullif(p.blocks_total, 0), p.tuples_done::float / nullif(p.tuples_total, 0)
        ) AS percent
    FROM pg_stat_progress_create_index AS p
    WHERE p.datname = current_database()
), all_of_them AS (
    SELECT indrelid, indexrelid FROM present
    UNION
    SELECT b.relid, b.index_relid FROM building AS b
    WHERE NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indexrelid = b.index_relid)
)
SELECT
    t.pipeline,
    t.generation,
    t.state,
    t.nspname::text AS table_schema,
    t.relname::text AS table_name,
    x.relname::text AS index_name,
    x.amname::text AS kind,
    CASE
        WHEN x.opcname LIKE 'bit%' THEN 'bits'
        WHEN x.opcname LIKE 'halfvec%' AND stored.typname = 'vector' THEN 'halfvec'
        WHEN x.opcname IS NOT NULL THEN 'float'
    END AS held,
    pg_get_indexdef(x.indexrelid) AS definition,
    pg_relation_size(x.indexrelid) AS bytes,
    x.valid,
    b.why,
    b.reason,
    b.built_at,
    now() - b.built_at AS age,
    b.seconds AS build_seconds,
    b.spilled_after,
    b.rows AS rows_at_build,
    CASE WHEN t.reltuples >= 0 THEN t.reltuples::bigint END AS rows_estimate,
    greatest(b.came, b.went)::float / nullif(greatest(b.rows, b.rows - b.went + b.came), 0) AS churned,
    b.looked_at AS churned_at,
    s.n_dead_tup::float / nullif(s.n_live_tup + s.n_dead_tup, 0) AS dead,
    b.recall,
    b.recall_low,
    b.recall_high,
    b.recall_k,
    b.recall_queries,
    b.recalled_at,
    p.phase AS building,
    round(p.percent::numeric, 1) AS building_percent,
    tuned.tuned_at,
    tuned.chosen AS tuned_choice
FROM vector_tables AS t
LEFT JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attname = 'embedding' AND NOT a.attisdropped
LEFT JOIN pg_type AS stored ON stored.oid = a.atttypid
LEFT JOIN all_of_them AS every ON every.indrelid = t.oid
LEFT JOIN present AS x ON x.indexrelid = every.indexrelid
LEFT JOIN building AS p ON p.relid = t.oid AND p.index_relid = every.indexrelid
LEFT JOIN pg_stat_all_tables AS s ON s.relid = t.oid
LEFT JOIN LATERAL (
    SELECT * FROM rowvec.index_builds AS b
    WHERE b.table_schema = t.nspname AND b.table_name = t.relname
      AND b.index_oid = x.indexrelid AND b.index_name = x.relname
    ORDER BY b.build_id DESC LIMIT 1
) AS b ON true
LEFT JOIN rowvec.tunings AS tuned ON tuned.table_schema = t.nspname AND tuned.table_name = t.relname;
COMMENT ON VIEW rowvec.indexes IS
    'One row per index on vectors (without index_name: a table that has none): its kind, its churn and its recall.';

-- name: migration_5 -- the images that a pipeline's rows show, and which of them are in the store
CREATE TABLE rowvec.images (
    family text NOT NULL,
    sha256 bytea NOT NULL,
    media_type text NOT NULL,
    bytes bigint NOT NULL,
    place text NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT now(),
    uploaded_at timestamptz,
    PRIMARY KEY (family, sha256)
);
COMMENT ON TABLE rowvec.images IS 'One row per image, however many rows show it: its type, and whether the store has it.';
COMMENT ON COLUMN rowvec.images.family IS 'The name in the pipeline file: all generations of a vector table share images.';
COMMENT ON COLUMN rowvec.images.place IS 'The file or blob in which the source last had it.';
COMMENT ON COLUMN rowvec.images.noted_at IS 'When a row with it was last new or changed.';

-- name: migration_6 -- what was spent, and the jobs at a provider's Batch API
ALTER TABLE rowvec.runs DROP CONSTRAINT runs_state_check;
ALTER TABLE rowvec.runs ADD CONSTRAINT runs_state_check
    CHECK (state IN ('planned', 'running', 'succeeded', 'failed', 'abandoned', 'waiting'));

CREATE TABLE rowvec.spending (
    family text NOT NULL,
    month date NOT NULL,
    run_id bigint NOT NULL,
    settled_usd double precision NOT NULL DEFAULT 0,
    reserved_usd double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (family, month, run_id)
);
COMMENT ON TABLE rowvec.spending IS 'What each run spent on its embedder, by the month (UTC) of the requests.';
COMMENT ON COLUMN rowvec.spending.reserved_usd IS
    'For requests without a response yet. Requests in flight when a run was killed stay: they may have been billed.';

CREATE TABLE rowvec.jobs (
    job_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pipeline_id int NOT NULL REFERENCES rowvec.pipelines,
    run_id bigint NOT NULL,
    mark uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    state text NOT NULL DEFAULT 'prepared' CHECK (state IN ('prepared', 'submitted', 'collected')),
    provider_id text,
    provider_state text,
    texts int NOT NULL,
    tokens bigint NOT NULL,
    reserved_usd double precision NOT NULL,
    reserved_month date NOT NULL,
    answered int NOT NULL DEFAULT 0,
    answered_tokens bigint NOT NULL DEFAULT 0,
    cost_usd double precision NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    collected_at timestamptz,
    reported_run bigint
);
CREATE INDEX jobs_of_pipeline ON rowvec.jobs (pipeline_id, state);
COMMENT ON TABLE rowvec.jobs IS 'One row per job at a provider''s Batch API, written before the job is submitted.';
COMMENT ON COLUMN rowvec.jobs.mark IS 'In the job''s metadata at the provider, to find a job whose id was lost.';
COMMENT ON COLUMN rowvec.jobs.reported_run IS 'The run whose report counts its cost.';

CREATE TABLE rowvec.job_texts (
    job_id bigint NOT NULL REFERENCES rowvec.jobs ON DELETE CASCADE,
    pipeline_id int NOT NULL,
    fingerprint bytea NOT NULL,
    state text NOT NULL DEFAULT 'asked' CHECK (state IN ('asked', 'returned', 'refused')),
    reason text,
    detail text,
    PRIMARY KEY (job_id, fingerprint)
);
CREATE INDEX texts_of_jobs ON rowvec.job_texts (pipeline_id, fingerprint);
COMMENT ON TABLE rowvec.job_texts IS
    'Texts of a job without a vector: still asked, returned, or refused because of the text itself.';

ALTER TABLE rowvec.answers ADD COLUMN price_share real NOT NULL DEFAULT 1;
COMMENT ON COLUMN rowvec.answers.price_share IS 'Share of the price of a token: 0.5 if the answer came from the Batch API.';

-- name: migration_7 -- the rate limit that processes share for one account of an embedder
-- Unlogged: the rows are worth some seconds, and a crash of the server may lose them.
CREATE UNLOGGED TABLE rowvec.pace_accounts (
    account bytea PRIMARY KEY,
    address text NOT NULL,
    model text NOT NULL,
    rest_until timestamptz NOT NULL
);
COMMENT ON TABLE rowvec.pace_accounts IS 'One row per account of an embedder: until when its provider wants no requests.';
COMMENT ON COLUMN rowvec.pace_accounts.account IS 'SHA-256 of address, model and key; the key itself is stored nowhere.';

CREATE UNLOGGED TABLE rowvec.pace_leases (
    account bytea NOT NULL,
    holder uuid NOT NULL,
    process text NOT NULL,
    wanted double precision NOT NULL,
    granted double precision NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (account, holder)
);
COMMENT ON TABLE rowvec.pace_leases IS
    'One row per process that uses an account: its share of the account''s limits, until the lease ends or is renewed.';
COMMENT ON COLUMN rowvec.pace_leases.granted IS 'Share of the limits, 0 to 1; all leases of an account add up to at most 1.';

-- name: migration_8 -- the state in which recall was measured, so that it is not measured again if nothing changed
ALTER TABLE rowvec.index_builds ADD COLUMN recalled_over jsonb;
COMMENT ON COLUMN rowvec.index_builds.recalled_over IS
    'The state in which recall was measured: settings, rows, newest run, writes, VACUUMs, and the index''s file.';

-- name: migration_9 -- rows that the database refuses for their data
-- An index has no room for a long key, and such a row is rejected for just that: the digest stands for the key.
CREATE FUNCTION rowvec.key_digest(key jsonb) RETURNS bytea
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN sha256(convert_to(key::text, getdatabaseencoding()));

ALTER TABLE rowvec.rejects
    DROP CONSTRAINT rejects_pkey,
    ADD COLUMN metadata_hash bytea,
    ADD COLUMN sqlstate text,
    ADD COLUMN key_digest bytea GENERATED ALWAYS AS (rowvec.key_digest(key)) STORED,
    ADD PRIMARY KEY (pipeline_id, key_digest);
COMMENT ON COLUMN rowvec.rejects.metadata_hash IS
    'If the metadata may be the fault too: the row is tried again when they change. NULL: only its content counts.';
COMMENT ON COLUMN rowvec.rejects.sqlstate IS 'What the database said when it refused the row, or its removal.';

-- name: migration_10 -- who owns a pipeline: a lease in place of a session's advisory lock
CREATE TABLE rowvec.run_leases (
    pipeline_id int PRIMARY KEY REFERENCES rowvec.pipelines,
    number bigint NOT NULL DEFAULT 0,
    held boolean NOT NULL DEFAULT false,
    seconds double precision NOT NULL DEFAULT 0,
    machine text NOT NULL DEFAULT '',
    pid int NOT NULL DEFAULT 0,
    started bigint NOT NULL DEFAULT 0,
    taken_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE rowvec.run_leases IS
    'One row per pipeline: the lease of the run that may pay and write. Its number only grows.';
COMMENT ON COLUMN rowvec.run_leases.held IS 'Whether the run has not given it up.';
COMMENT ON COLUMN rowvec.run_leases.seconds IS
    'For so long another run must see no renewal before it takes the lease over.';
COMMENT ON COLUMN rowvec.run_leases.machine IS
    'With pid and started: the owner''s process, so that a run on the same machine sees that it was killed.';

-- Apart from the leases: a transaction that has locked a lease must not make its renewals wait, nor fail by them.
CREATE TABLE rowvec.lease_renewals (
    pipeline_id int PRIMARY KEY REFERENCES rowvec.pipelines,
    number bigint NOT NULL DEFAULT 0,
    renewals bigint NOT NULL DEFAULT 0,
    ends_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 20);
COMMENT ON TABLE rowvec.lease_renewals IS 'How often the owner of each lease has renewed it.';
COMMENT ON COLUMN rowvec.lease_renewals.ends_at IS
    'When it ends if it is not renewed, for people to read: no clock decides, only how long the renewals stand still.';

ALTER TABLE rowvec.runs ADD COLUMN lease bigint;
COMMENT ON COLUMN rowvec.runs.lease IS 'The number of the lease that it had; NULL for a plan, which needs none.';
ALTER TABLE rowvec.runs DROP CONSTRAINT runs_state_check;
ALTER TABLE rowvec.runs ADD CONSTRAINT runs_state_check
    CHECK (state IN ('planned', 'running', 'succeeded', 'failed', 'abandoned', 'waiting', 'lost'));

-- name: migration_11 -- the ledger's mark in the store of artifacts, so that a copy of the database is told from it
CREATE TABLE rowvec.stores (
    family text PRIMARY KEY,
    ledger uuid NOT NULL DEFAULT gen_random_uuid(),
    server text,
    database oid NOT NULL,
    superseded text[] NOT NULL DEFAULT '{}'
);
COMMENT ON TABLE rowvec.stores IS 'One row per pipeline: under which id this ledger writes to the pipeline''s store.';
COMMENT ON COLUMN rowvec.stores.server IS
    'The server''s system identifier; with the database''s oid it tells this database from a copy of it. NULL: unknown.';
COMMENT ON COLUMN rowvec.stores.superseded IS
    'Manifests in the store that the next one replaces: those that killed runs left, and those that were given up.';

-- name: migration_12 -- runs that compare only the rows whose keys a queue names
CREATE TABLE rowvec.changes (
    pipeline_id int PRIMARY KEY REFERENCES rowvec.pipelines,
    facts jsonb NOT NULL,
    vectors oid,
    rows bigint NOT NULL,
    checksum numeric NOT NULL,
    verified_at timestamptz NOT NULL,
    verified_run bigint NOT NULL,
    merged_run bigint NOT NULL
);
COMMENT ON TABLE rowvec.changes IS
    'One row per pipeline whose source has a queue of changes: what the next run may rely on.';
COMMENT ON COLUMN rowvec.changes.facts IS 'Tables, triggers and settings as the last run found them.';
COMMENT ON COLUMN rowvec.changes.vectors IS 'The vector table.';
COMMENT ON COLUMN rowvec.changes.merged_run IS 'The last run that merged; another one may have written what is not known here.';
COMMENT ON COLUMN rowvec.changes.rows IS 'Rows of the vector table: counted by the last whole comparison, carried on since.';
COMMENT ON COLUMN rowvec.changes.checksum IS 'Its checksum of keys and fingerprints, likewise.';
COMMENT ON COLUMN rowvec.changes.verified_at IS 'When the whole source and the vector table were last compared and agreed.';

ALTER TABLE rowvec.plans ADD COLUMN changes jsonb;
COMMENT ON COLUMN rowvec.plans.changes IS 'What the plan took from the queue of changes; NULL: there is no queue.';

-- name: migration_13 -- runs that a person has cancelled
ALTER TABLE rowvec.runs DROP CONSTRAINT runs_state_check;
ALTER TABLE rowvec.runs ADD CONSTRAINT runs_state_check
    CHECK (state IN ('planned', 'running', 'succeeded', 'failed', 'abandoned', 'waiting', 'lost', 'cancelled'));

-- name: migration_14 -- how fresh the vectors of each pipeline are
CREATE TABLE rowvec.looks (
    pipeline_id int PRIMARY KEY REFERENCES rowvec.pipelines,
    queue text NOT NULL,
    is_here boolean NOT NULL,
    waiting bigint NOT NULL DEFAULT 0,
    oldest_at timestamptz,
    looked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE rowvec.looks IS
    'One row per pipeline whose source has a queue of changes: where it is, and what the last look has found in it.';
COMMENT ON COLUMN rowvec.looks.queue IS 'The table in the schema rowvec_changes of the source''s database.';
COMMENT ON COLUMN rowvec.looks.is_here IS
    'Whether that is this database: rowvec.freshness then reads the queue itself, and not what was found in it.';

CREATE FUNCTION rowvec.waiting(queue text, OUT waiting bigint, OUT oldest_at timestamptz)
LANGUAGE plpgsql STABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- A role that may not read the queue gets NULL, and rowvec.freshness then says what the last look has found.
    IF EXISTS (
        SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = 'rowvec_changes' AND c.relname = queue
          AND has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
    ) THEN
        EXECUTE format('SELECT count(*), min(rowvec_at) FROM rowvec_changes.%I', queue) INTO waiting, oldest_at;
    END IF;
END $$;
COMMENT ON FUNCTION rowvec.waiting(text) IS 'Entries of a queue of changes, and when the oldest of them was written.';

CREATE VIEW rowvec.freshness AS
SELECT
    p.family AS pipeline,
    p.table_schema,
    p.table_name,
    look.waiting,
    -- The clock of another database may be ahead.
    CASE WHEN look.oldest_at IS NOT NULL THEN greatest(statement_timestamp() - look.oldest_at, interval '0') END AS oldest,
    look.looked_at,
    newest.run_id AS last_run,
    newest.started_at AS last_run_at,
    CASE
        WHEN newest.state IS NULL THEN 'never run'
        -- A run whose lease has ended was killed, and the next run marks it so.
        WHEN newest.state = 'running' THEN CASE WHEN newest.is_held THEN 'running' ELSE 'abandoned' END
        WHEN newest.state = 'succeeded' THEN 'consistent'
        WHEN newest.state = 'failed' AND newest.report ->> 'consistent' = 'false' THEN 'inconsistent'
        WHEN newest.state = 'lost' THEN 'failed'
        ELSE newest.state
    END AS verdict,
    coalesce(known.verified_run, proof.run_id) AS verified_run,
    coalesce(known.verified_at, proof.finished_at) AS verified_at
FROM rowvec.pipelines AS p
LEFT JOIN rowvec.changes AS known ON known.pipeline_id = p.pipeline_id
LEFT JOIN LATERAL (
    SELECT
        CASE WHEN now.waiting IS NULL THEN l.waiting ELSE now.waiting END AS waiting,
        CASE WHEN now.waiting IS NULL THEN l.oldest_at ELSE now.oldest_at END AS oldest_at,
        CASE WHEN now.waiting IS NULL THEN l.looked_at ELSE statement_timestamp() END AS looked_at
    FROM rowvec.looks AS l
    LEFT JOIN LATERAL rowvec.waiting(CASE WHEN l.is_here THEN l.queue END) AS now ON true
    WHERE l.pipeline_id = p.pipeline_id
) AS look ON true
-- A run of a command that only reads or prunes has no such report, unless it failed.
LEFT JOIN LATERAL (
    SELECT r.*, l.held AND l.number = r.lease AND w.ends_at > clock_timestamp() AS is_held
    FROM rowvec.runs AS r
    LEFT JOIN rowvec.run_leases AS l ON l.pipeline_id = r.pipeline_id
    LEFT JOIN rowvec.lease_renewals AS w ON w.pipeline_id = r.pipeline_id
    WHERE r.pipeline_id = p.pipeline_id
      AND (r.report ? 'embedded' OR r.error IS NOT NULL OR r.state IN ('running', 'abandoned'))
    ORDER BY r.run_id DESC LIMIT 1
) AS newest ON true
-- Without a queue each good run compares everything; with one, runs that compared a part prove nothing of the whole.
LEFT JOIN LATERAL (
    SELECT r.run_id, r.finished_at FROM rowvec.runs AS r
    WHERE known.verified_run IS NULL AND r.pipeline_id = p.pipeline_id
      AND r.report ? 'embedded' AND r.state = 'succeeded'
      AND NOT r.checks @> '[{"name": "compared in part"}]'
    ORDER BY r.run_id DESC LIMIT 1
) AS proof ON true
WHERE p.state = 'live';
COMMENT ON VIEW rowvec.freshness IS 'One row per pipeline: which changes wait, the last run, and what was proved when.';
COMMENT ON COLUMN rowvec.freshness.waiting IS
    'Entries in the queue of changes; a row that changed twice has two. NULL: the pipeline compares its whole source.';
COMMENT ON COLUMN rowvec.freshness.oldest IS 'How long the oldest of them has waited; NULL: none waits.';
COMMENT ON COLUMN rowvec.freshness.looked_at IS
    'When that was so: now, if this role may read the queue in this database; else when rowvec last looked.';
COMMENT ON COLUMN rowvec.freshness.verdict IS 'Of the last run, in the words of rowvec status.';
COMMENT ON COLUMN rowvec.freshness.verified_at IS 'When a run last compared the whole source, and it agreed.';

-- name: migration_15 -- search settings that a run raised, because the index found too little with those it was chosen with
ALTER TABLE rowvec.index_builds ADD COLUMN raised jsonb;
COMMENT ON COLUMN rowvec.index_builds.raised IS
    'Search settings that find enough where those of the choice did not, and what they were; NULL: the choice''s suffice.';

-- name: migration_16 -- vector tables that are split into partitions, each with an index of its own
CREATE OR REPLACE VIEW rowvec.indexes AS
WITH vector_tables AS (
    SELECT p.family AS pipeline, p.generation, p.state, n.nspname, t.relname, t.oid, t.reltuples, p.table_name AS whole
    FROM rowvec.pipelines AS p
    JOIN pg_namespace AS n ON n.nspname = p.table_schema
    JOIN pg_class AS w ON w.relnamespace = n.oid AND w.relname = p.table_name AND w.relkind IN ('r', 'p')
    CROSS JOIN LATERAL (
        SELECT w.oid WHERE w.relkind = 'r'
        UNION ALL
        SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = w.oid AND w.relkind = 'p'
    ) AS part
    JOIN pg_class AS t ON t.oid = part.oid
), present AS (
    SELECT i.indrelid, i.indexrelid, c.relname, am.amname, o.opcname, i.indisvalid AND i.indisready AS valid
    FROM pg_index AS i
    JOIN pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_am AS am ON am.oid = c.relam AND am.amname IN ('hnsw', 'ivfflat')
    JOIN pg_opclass AS o ON o.oid = i.indclass[0]
), building AS (
    -- A build without CONCURRENTLY has no index yet that other sessions could see.
    SELECT
        p.relid, p.index_relid, p.phase,
        100.0 * greatest(
            p.blocks_done::float / nullif(p.blocks_total, 0), p.tuples_done::float / nullif(p.tuples_total, 0)
        ) AS percent
    FROM pg_stat_progress_create_index AS p
    WHERE p.datname = current_database()
), all_of_them AS (
    SELECT indrelid, indexrelid FROM present
    UNION
    SELECT b.relid, b.index_relid FROM building AS b
    WHERE NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indexrelid = b.index_relid)
)
SELECT
    t.pipeline,
    t.generation,
    t.state,
    t.nspname::text AS table_schema,
    t.relname::text AS table_name,
    x.relname::text AS index_name,
    x.amname::text AS kind,
    CASE
        WHEN x.opcname LIKE 'bit%' THEN 'bits'
        WHEN x.opcname LIKE 'halfvec%' AND stored.typname = 'vector' THEN 'halfvec'
        WHEN x.opcname IS NOT NULL THEN 'float'
    END AS held,
    pg_get_indexdef(x.indexrelid) AS definition,
    pg_relation_size(x.indexrelid) AS bytes,
    x.valid,
    b.why,
    b.reason,
    b.built_at,
    now() - b.built_at AS age,
    b.seconds AS build_seconds,
    b.spilled_after,
    b.rows AS rows_at_build,
    CASE WHEN t.reltuples >= 0 THEN t.reltuples::bigint END AS rows_estimate,
    greatest(b.came, b.went)::float / nullif(greatest(b.rows, b.rows - b.went + b.came), 0) AS churned,
    b.looked_at AS churned_at,
    s.n_dead_tup::float / nullif(s.n_live_tup + s.n_dead_tup, 0) AS dead,
    b.recall,
    b.recall_low,
    b.recall_high,
    b.recall_k,
    b.recall_queries,
    b.recalled_at,
    p.phase AS building,
    round(p.percent::numeric, 1) AS building_percent,
    tuned.tuned_at,
    tuned.chosen AS tuned_choice
FROM vector_tables AS t
LEFT JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attname = 'embedding' AND NOT a.attisdropped
LEFT JOIN pg_type AS stored ON stored.oid = a.atttypid
LEFT JOIN all_of_them AS every ON every.indrelid = t.oid
LEFT JOIN present AS x ON x.indexrelid = every.indexrelid
LEFT JOIN building AS p ON p.relid = t.oid AND p.index_relid = every.indexrelid
LEFT JOIN pg_stat_all_tables AS s ON s.relid = t.oid
LEFT JOIN LATERAL (
    SELECT * FROM rowvec.index_builds AS b
    WHERE b.table_schema = t.nspname AND b.table_name = t.relname
      AND b.index_oid = x.indexrelid AND b.index_name = x.relname
    ORDER BY b.build_id DESC LIMIT 1
) AS b ON true
LEFT JOIN rowvec.tunings AS tuned ON tuned.table_schema = t.nspname AND tuned.table_name = t.whole;
COMMENT ON VIEW rowvec.indexes IS
    'One row per index on vectors (without index_name: a table or partition that has none): its kind, churn and recall.';

-- name: migration_17 -- erasures: which are under way, and the certificates of those that are done
CREATE TABLE rowvec.erasures (
    erasure_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    family text NOT NULL,
    keys jsonb NOT NULL,
    leftovers text[] NOT NULL DEFAULT '{}',
    removed jsonb NOT NULL DEFAULT '[]',
    certificate jsonb,
    asked_at timestamptz NOT NULL DEFAULT now(),
    finished_at timestamptz
);
CREATE UNIQUE INDEX one_open_erasure ON rowvec.erasures (family) WHERE finished_at IS NULL;
COMMENT ON TABLE rowvec.erasures IS 'One row per erasure of a pipeline''s rows (rowvec forget), with its certificate once it is done.';
COMMENT ON COLUMN rowvec.erasures.keys IS 'The keys, as long as the erasure is under way; empty afterwards.';
COMMENT ON COLUMN rowvec.erasures.leftovers IS
    'Objects of the store that a run which was killed leaves behind: new ones before they are in use, old ones after.';
COMMENT ON COLUMN rowvec.erasures.removed IS 'What is removed so far, for the certificate.';

-- name: migration_18 -- a certificate per run: the root of a hash tree over key, fingerprint and vector of every row
CREATE TABLE rowvec.hash_tree (
    pipeline_id int NOT NULL REFERENCES rowvec.pipelines ON DELETE CASCADE,
    path text COLLATE "C" NOT NULL,
    rows bigint NOT NULL,
    content bytea NOT NULL,
    PRIMARY KEY (pipeline_id, path)
);
-- Hashes do not compress; trying costs CPU for nothing.
ALTER TABLE rowvec.hash_tree ALTER COLUMN content SET STORAGE EXTERNAL;
COMMENT ON TABLE rowvec.hash_tree IS
    'One row per node of the hash tree over a vector table, as of its last certificate; without a root, there is no tree.';
COMMENT ON COLUMN rowvec.hash_tree.path IS
    'The first hex digits of the digests of the keys below it: none for the root, four for a bucket.';
COMMENT ON COLUMN rowvec.hash_tree.content IS
    'A bucket: 48 bytes per row, in ascending order. Another node: per child its hex digit and the sha256 of its content.';

CREATE TABLE rowvec.certificates (
    pipeline_id int NOT NULL REFERENCES rowvec.pipelines ON DELETE CASCADE,
    run_id bigint NOT NULL,
    rows bigint NOT NULL,
    vector text NOT NULL,
    root text NOT NULL,
    before text,
    chain text NOT NULL,
    PRIMARY KEY (pipeline_id, run_id)
);
COMMENT ON TABLE rowvec.certificates IS 'One row per run that changed a vector table: the root of its hash tree after the run.';
COMMENT ON COLUMN rowvec.certificates.vector IS 'The type of the vectors: vector, halfvec or sparsevec.';
COMMENT ON COLUMN rowvec.certificates.before IS 'The column chain of the certificate before; NULL: it is the first.';
COMMENT ON COLUMN rowvec.certificates.chain IS 'The sha256 over before, run_id, rows and root.';

-- name: migration_19 -- what a run looks up at its start, however many runs there were: those not over, and those not needed
CREATE INDEX runs_not_over ON rowvec.runs (pipeline_id) WHERE state IN ('planned', 'running');
CREATE INDEX artifacts_of_run ON rowvec.artifacts (run_id);
CREATE INDEX artifacts_of_last_run ON rowvec.artifacts (last_run_id);

-- name: migration_20 -- old certificates in blocks, so that a run that changed one row is 48 bytes in the end
CREATE TABLE rowvec.certificate_blocks (
    pipeline_id int NOT NULL REFERENCES rowvec.pipelines ON DELETE CASCADE,
    last_run bigint NOT NULL,
    before text,
    chain text NOT NULL,
    content bytea NOT NULL,
    PRIMARY KEY (pipeline_id, last_run)
);
ALTER TABLE rowvec.certificate_blocks ALTER COLUMN content SET STORAGE EXTERNAL;
COMMENT ON TABLE rowvec.certificate_blocks IS 'Old certificates, in order: each follows the one before it. rowvec.roots shows them.';
COMMENT ON COLUMN rowvec.certificate_blocks.before IS 'The column before of the first certificate.';
COMMENT ON COLUMN rowvec.certificate_blocks.chain IS 'The column chain of the last certificate.';
COMMENT ON COLUMN rowvec.certificate_blocks.content IS
    'Per certificate 48 bytes: run_id and rows with eight bytes each, big-endian, and the root with 32.';
COMMENT ON TABLE rowvec.certificates IS
    'One row per run that changed a vector table: the root of its hash tree after the run. Old ones are in certificate_blocks.';

CREATE VIEW rowvec.roots AS
SELECT c.pipeline_id, c.run_id, c.rows, c.root FROM rowvec.certificates AS c
UNION ALL
SELECT
    b.pipeline_id,
    ('x' || encode(substring(b.content FROM 48 * i + 1 FOR 8), 'hex'))::bit(64)::bigint,
    ('x' || encode(substring(b.content FROM 48 * i + 9 FOR 8), 'hex'))::bit(64)::bigint,
    encode(substring(b.content FROM 48 * i + 17 FOR 32), 'hex')
FROM rowvec.certificate_blocks AS b CROSS JOIN generate_series(0, octet_length(b.content) / 48 - 1) AS i;
COMMENT ON VIEW rowvec.roots IS 'One row per run that changed a vector table: how many rows it certified, and their root.';

-- name: migration_21 -- indexes of every access method that orders vectors by a distance (amoppurpose o), not pgvector's alone
CREATE OR REPLACE VIEW rowvec.indexes AS
WITH vector_tables AS (
    SELECT p.family AS pipeline, p.generation, p.state, n.nspname, t.relname, t.oid, t.reltuples, p.table_name AS whole
    FROM rowvec.pipelines AS p
    JOIN pg_namespace AS n ON n.nspname = p.table_schema
    JOIN pg_class AS w ON w.relnamespace = n.oid AND w.relname = p.table_name AND w.relkind IN ('r', 'p')
    CROSS JOIN LATERAL (
        SELECT w.oid WHERE w.relkind = 'r'
        UNION ALL
        SELECT i.inhrelid FROM pg_inherits AS i WHERE i.inhparent = w.oid AND w.relkind = 'p'
    ) AS part
    JOIN pg_class AS t ON t.oid = part.oid
), present AS (
    SELECT i.indrelid, i.indexrelid, c.relname, am.amname, o.opcname, i.indisvalid AND i.indisready AS valid
    FROM pg_index AS i
    JOIN pg_class AS c ON c.oid = i.indexrelid
    JOIN pg_am AS am ON am.oid = c.relam
    JOIN pg_opclass AS o ON o.oid = i.indclass[0]
    WHERE o.opcintype IN (SELECT y.oid FROM pg_type AS y WHERE y.typname IN ('vector', 'halfvec', 'sparsevec', 'bit'))
      AND EXISTS (SELECT FROM pg_amop AS a WHERE a.amopfamily = o.opcfamily AND a.amoppurpose = 'o')
), building AS (
    -- A build without CONCURRENTLY has no index yet that other sessions could see.
    SELECT
        p.relid, p.index_relid, p.phase,
        100.0 * greatest(
            p.blocks_done::float / nullif(p.blocks_total, 0), p.tuples_done::float / nullif(p.tuples_total, 0)
        ) AS percent
    FROM pg_stat_progress_create_index AS p
    WHERE p.datname = current_database()
), all_of_them AS (
    SELECT indrelid, indexrelid FROM present
    UNION
    SELECT b.relid, b.index_relid FROM building AS b
    WHERE NOT EXISTS (SELECT FROM pg_index AS i WHERE i.indexrelid = b.index_relid)
)
SELECT
    t.pipeline,
    t.generation,
    t.state,
    t.nspname::text AS table_schema,
    t.relname::text AS table_name,
    x.relname::text AS index_name,
    x.amname::text AS kind,
    CASE
        WHEN x.opcname LIKE 'bit%' THEN 'bits'
        WHEN x.opcname LIKE 'halfvec%' AND stored.typname = 'vector' THEN 'halfvec'
        WHEN x.opcname IS NOT NULL THEN 'float'
    END AS held,
    pg_get_indexdef(x.indexrelid) AS definition,
    pg_relation_size(x.indexrelid) AS bytes,
    x.valid,
    b.why,
    b.reason,
    b.built_at,
    now() - b.built_at AS age,
    b.seconds AS build_seconds,
    b.spilled_after,
    b.rows AS rows_at_build,
    CASE WHEN t.reltuples >= 0 THEN t.reltuples::bigint END AS rows_estimate,
    greatest(b.came, b.went)::float / nullif(greatest(b.rows, b.rows - b.went + b.came), 0) AS churned,
    b.looked_at AS churned_at,
    s.n_dead_tup::float / nullif(s.n_live_tup + s.n_dead_tup, 0) AS dead,
    b.recall,
    b.recall_low,
    b.recall_high,
    b.recall_k,
    b.recall_queries,
    b.recalled_at,
    p.phase AS building,
    round(p.percent::numeric, 1) AS building_percent,
    tuned.tuned_at,
    tuned.chosen AS tuned_choice
FROM vector_tables AS t
LEFT JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attname = 'embedding' AND NOT a.attisdropped
LEFT JOIN pg_type AS stored ON stored.oid = a.atttypid
LEFT JOIN all_of_them AS every ON every.indrelid = t.oid
LEFT JOIN present AS x ON x.indexrelid = every.indexrelid
LEFT JOIN building AS p ON p.relid = t.oid AND p.index_relid = every.indexrelid
LEFT JOIN pg_stat_all_tables AS s ON s.relid = t.oid
LEFT JOIN LATERAL (
    SELECT * FROM rowvec.index_builds AS b
    WHERE b.table_schema = t.nspname AND b.table_name = t.relname
      AND b.index_oid = x.indexrelid AND b.index_name = x.relname
    ORDER BY b.build_id DESC LIMIT 1
) AS b ON true
LEFT JOIN rowvec.tunings AS tuned ON tuned.table_schema = t.nspname AND tuned.table_name = t.whole;
