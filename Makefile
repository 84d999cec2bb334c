# The two commands of the README are `make demo` and `make test`; each makes its own environment from the lock file.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
# Tests mostly wait for servers that they start and kill, so there are twice as many processes as a small machine has cores.
WORKERS ?= 4
BIN := $(VENV)/bin
# A notice of the theme's makers, in each build.
export NO_MKDOCS_2_WARNING := 1
# Images of containers often forbid Python to keep what it has compiled. The tests start hundreds of interpreters.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-unit test-matrix lint soak crash bench-peers bench-rivals bench bench-quick lock clean

$(VENV)/.runtime: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement requirements-dev.lock
	touch $@

demo: $(VENV)/.runtime
	$(BIN)/rowvec demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal $(PYTEST_FLAGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/deptry .
	$(BIN)/lint-imports
	$(BIN)/basedpyright
	$(BIN)/mkdocs build --strict

# The documentation on http://127.0.0.1:8000, built again when a page changes.
docs: $(VENV)/.dev
	$(BIN)/mkdocs serve

# No server is started: no Postgres, no Azurite, no Prefect.
test-unit: $(VENV)/.dev
	$(BIN)/python -m pytest tests/unit --numprocesses=2 --dist=worksteal

# The tests that use a Postgres, on the server of each line in tests/support/servers/lines.py; at the end it prints the table
# for docs/reference/compatibility.md. SERVERS=pg16,pgbouncer takes some of the lines, and TESTS some of the files.
test-matrix: $(VENV)/.dev
	$(BIN)/python -m tests.support.matrix --lines="$(SERVERS)" --numprocesses=$(WORKERS) --dist=worksteal $(PYTEST_FLAGS) $(TESTS)

# Long runs: the fault sequences and large tables that would make `make test` slow, and all property tests with cases
# drawn at random. `make test` tries the same cases each time.
soak: $(VENV)/.dev
	HYPOTHESIS_PROFILE=random $(BIN)/python -m pytest -m "soak or hypothesis" --timeout=7200 -o addopts="-ra --import-mode=importlib -p no:langsmith_plugin"

# Kills each command at each point of its run, runs it again, and compares what it leaves. It takes hours, goes on where it
# was stopped, and writes one line per trial to RESULTS; at the end it prints the table for docs/explanation/proof.md.
# CASES=trigger,prune takes the cases with one of these words in their names. CRASH_FLAGS="--tiers 2 3 --every 20" takes a
# sample: each twentieth full disk and cut connection.
RESULTS ?= build/crash.jsonl
crash: $(VENV)/.dev
	$(BIN)/python -m tests.support.crash_points.campaign --results=$(RESULTS) --workers=2 --cases="$(CASES)" $(CRASH_FLAGS)

# The peers of the benchmarks are installed in an environment of their own, never in the project's.
bench-peers:
	$(PYTHON) -m venv benchmarks/.peers
	benchmarks/.peers/bin/pip install --quiet --no-deps --require-hashes --requirement requirements-dev.lock
	benchmarks/.peers/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	benchmarks/.peers/bin/pip install --quiet "pgpq>=0.12"

# The rivals in benchmarks/sync.py and faults.py, each in its newest release and in its own environment: their pins clash.
RIVALS := benchmarks/.rivals
bench-rivals: $(VENV)/.dev
	for rival in langchain llamaindex cocoindex pgai; do $(PYTHON) -m venv $(RIVALS)/$$rival || exit 1; done
	$(RIVALS)/langchain/bin/pip install --quiet --upgrade langchain-core langchain-classic langchain-openai langchain-postgres "psycopg[binary]"
	$(RIVALS)/llamaindex/bin/pip install --quiet --upgrade llama-index-core llama-index-embeddings-openai llama-index-vector-stores-postgres "psycopg[binary]"
	$(RIVALS)/cocoindex/bin/pip install --quiet --upgrade "cocoindex[postgres,litellm]"
	$(RIVALS)/pgai/bin/pip install --quiet --upgrade "pgai[vectorizer-worker]"

# Each benchmark prints its figures for people and ends with one JSON object; benchmarks/README.md says which question it
# answers. The quick forms take some minutes together, to try them out; benchmarks/results is recorded on a quiet machine.
# SQLAlchemy, LangChain and LlamaIndex are in .venv too, for the test of docs/how-to/clients.md; pgpq is in .peers only.
BENCHMARKS ?= load diff chunks overlap scale start search images pace changes fresh $(if $(wildcard $(RIVALS)),sync faults)
BENCH_PYTHON ?= $(firstword $(wildcard benchmarks/.peers/bin/python) $(BIN)/python)

bench-quick: $(VENV)/.dev
	mkdir -p benchmarks/.quick
	for name in $(BENCHMARKS); do \
		$(BENCH_PYTHON) -m benchmarks.$$name --quick --plot benchmarks/.quick/$$name.png > benchmarks/.quick/$$name.txt \
			|| exit 1; \
		tail -n 1 benchmarks/.quick/$$name.txt; \
	done

bench: $(VENV)/.dev
	mkdir -p benchmarks/results
	for name in $(BENCHMARKS); do \
		$(BENCH_PYTHON) -m benchmarks.$$name --plot benchmarks/results/$$name.png > benchmarks/results/$$name.txt \
			|| exit 1; \
		tail -n 1 benchmarks/results/$$name.txt; \
	done

# Renews both lock files from pyproject.toml.
lock: $(VENV)/.dev
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --generate-hashes --universal --python-version 3.11 --no-header --no-annotate pyproject.toml --group build -o requirements.lock
	$(BIN)/uv pip compile --quiet --upgrade --generate-hashes --universal --python-version 3.11 --no-header --no-annotate pyproject.toml --group build --group dev -c requirements.lock -o requirements-dev.lock

clean:
	rm -rf $(VENV) .rowvec build dist *.egg-info
