-- name: extension -- pgvector, where the role may install it and nobody has
CREATE EXTENSION IF NOT EXISTS vector;

-- name: version_table -- which migrations this database has had
CREATE SCHEMA IF NOT EXISTS rowvec;
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
COMMENT ON TABLE rowvec.pipelines IS 'One row a pipeline: its vector table, and the embedder its vectors come from.';

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
COMMENT ON TABLE rowvec.runs IS 'One row a run: what it did, what it cost, and whether it left the table consistent.';

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
COMMENT ON TABLE rowvec.rejects IS 'Rows that cannot be embedded. Tried again when their content changes, or on request.';

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
COMMENT ON COLUMN rowvec.runs.listed IS 'Whether a manifest in the store tells of it.';

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
