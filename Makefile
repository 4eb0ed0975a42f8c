# Everything a person starts. `make help` lists it.
#
#   PYTHON=...   the interpreter to build on (3.11 or newer; found by itself otherwise)
#   PIP_*        pip's own settings decide where packages come from
SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo smoke up test unit test-vllm conformance browser lint format bench-affinity bench-batching bench-recovery chaos engine lock lock-clients lock-engine clean distclean bench bench-dashboard bench-flood bench-keys bench-admin bench-routing bench-fleet bench-recording bench-door

PY := .venv/bin/python
CHECKED := gputorrent nodes jobs api dashboard worker_agent tests $(wildcard benchmarks)
ARGS ?=
# Where the database matters.
POSTGRES_TESTS ?= tests/api tests/jobs tests/nodes tests/journeys/test_asynchronous_jobs.py tests/journeys/test_nodes.py

# Two at a time, since most tests wait; those of one module stay together and share its cluster. JOBS=0: one by one.
JOBS ?= 2
SIDE_BY_SIDE = --numprocesses $(JOBS) --dist loadscope

# One recipe makes .venv; which lock it is made from decides what is in it. What developers need contains what
# the server needs, so the larger environment serves for both.
SERVER_ENV = @scripts/bootstrap requirements/server.lock requirements/dev.lock
DEV_ENV = @scripts/bootstrap requirements/dev.lock

help: ## what there is
	@echo "GPU Torrent"; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo; echo "Variables: PORT=8000 HOST=127.0.0.1 MODEL=<Hugging Face id, folder or NAME=FOLDER> WORKERS=1"
	@echo "           PYTHON=python3.12 ENGINE_PYTHON=<a Python that has vLLM>"

demo: ## everything on this machine with real vLLM, until Ctrl-C
	$(SERVER_ENV)
	@exec $(PY) -m gputorrent demo $(ARGS)

smoke: ## the same, asks one question and exits; the last line is JSON
	$(SERVER_ENV)
	@exec $(PY) -m gputorrent smoke $(ARGS)

up: ## the coordinator alone, in production mode, from the environment
	$(SERVER_ENV)
	@exec $(PY) -m gputorrent up $(ARGS)

test: unit conformance ## everything but the real engine and the browser: our tests, then the clients of others

unit: ## unit and journey tests on SQLite, then the database's part on PostgreSQL
	$(DEV_ENV)
	$(PY) -m pytest -m "not vllm" $(SIDE_BY_SIDE) --ignore=tests/conformance --ignore=tests/browser $(ARGS)
	$(PY) -m tests.postgres -- $(PY) -m pytest -m "not vllm" $(SIDE_BY_SIDE) $(POSTGRES_TESTS) $(ARGS)

test-vllm: ## journeys on real vLLM, and the official clients against it (minutes)
	$(DEV_ENV)
	@$(PY) -m gputorrent engine
	@$(PY) -m tests.conformance.environments openai2 openai3 node
	CONFORMANCE_REQUIRED=1 $(PY) -m pytest -m vllm $(ARGS)

conformance: ## OpenAI's own clients, LangChain, LiteLLM and schemathesis against a cluster, each as installed
	$(DEV_ENV)
	@$(PY) -m tests.conformance.environments
	CONFORMANCE_REQUIRED=1 $(PY) -m pytest -m "not vllm" tests/conformance $(ARGS)

browser: ## the admin and its live pages in Chromium, against a cluster
	$(DEV_ENV)
	@$(PY) -m tests.browser.environment
	BROWSER_REQUIRED=1 $(PY) -m pytest tests/browser $(ARGS)

lint: ## ruff and mypy
	$(DEV_ENV)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy $(CHECKED)

format: ## let ruff format the code
	$(DEV_ENV)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

engine: ## install vLLM and the demo's model, nothing else
	$(SERVER_ENV)
	@exec $(PY) -m gputorrent engine

bench: ## our speed beside vllm-router's, and the goals (10 minutes; wants two quiet cores)
	$(DEV_ENV)
	@exec $(PY) -m benchmarks.speed $(ARGS)

bench-batching: ## tokens/s through the agent against vLLM alone
	$(DEV_ENV)
	@$(PY) -m gputorrent engine
	@exec $(PY) -m benchmarks.batching $(ARGS)

bench-affinity: ## prefix-cache hits of chats on two nodes, with affinity and without (minutes)
	$(DEV_ENV)
	@$(PY) -m gputorrent engine
	@exec $(PY) -m benchmarks.affinity $(ARGS)

bench-keys: ## whether 1,000 wrong keys a second slow a good one down
	$(DEV_ENV)
	@exec $(PY) -m benchmarks.keys $(ARGS)

bench-dashboard: ## what the live dashboard weighs and costs with 1,000 nodes and 10,000 running jobs
	$(DEV_ENV)
	@exec $(PY) -m benchmarks.dashboard $(ARGS)

bench-admin: ## how long the admin's lists take with 100,000 jobs
	$(DEV_ENV)
	@exec $(PY) -m benchmarks.admin_lists $(ARGS)

bench-routing: ## what placing a request costs with up to 1,000 nodes
	$(DEV_ENV)
	@exec $(PY) -m benchmarks.routing $(ARGS)

bench-recording: ## what a request costs after its answer: its record and its counts
	$(DEV_ENV)
	@exec $(PY) -m benchmarks.recording $(ARGS)

bench-door: ## what a completion costs the web process before anything waits, part by part
	$(DEV_ENV)
	@exec $(PY) -m benchmarks.door $(ARGS)

bench-fleet: ## what 1,000 idle nodes cost the coordinator (minutes)
	$(DEV_ENV)
	@exec $(PY) -m benchmarks.fleet $(ARGS)

bench-recovery: ## how long until all is well again, fault by fault (minutes)
	$(DEV_ENV)
	@exec $(PY) -m benchmarks.recovery $(ARGS)

.PHONY: bench-sockets screenshots
bench-sockets: ## what 20 open dashboards cost callers
	$(DEV_ENV)
	@exec $(PY) -m benchmarks.sockets $(ARGS)

screenshots: ## pictures of every page for the documentation, from a cluster with fake engines
	$(DEV_ENV)
	@$(PY) -m tests.browser.environment
	@exec $(PY) -m tests.browser.screenshots $(ARGS)

chaos: ## break a real cluster under load: at least 2000 jobs and 36 faults (minutes)
	$(DEV_ENV)
	@exec $(PY) -m tests.chaos $(ARGS)

bench-flood: ## does one key that floods the cluster keep another waiting?
	$(DEV_ENV)
	@exec $(PY) -m benchmarks.flood $(ARGS)

lock: ## pin our packages anew
	$(DEV_ENV)
	@scripts/uv pip compile -q --universal --python-version 3.11 --no-header -o requirements/server.lock pyproject.toml
	@scripts/uv pip compile -q --universal --python-version 3.11 --no-header --extra dev -o requirements/dev.lock pyproject.toml

lock-clients: ## pin the clients of `make conformance` anew
	$(DEV_ENV)
	@requirements/lock-clients.sh $(CURDIR)/scripts/uv

lock-engine: ## pin the engine's packages anew
	$(DEV_ENV)
	@requirements/lock-engine.sh $(CURDIR)/scripts/uv

clean: ## remove what runs and tests left (.data stays: it is yours)
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis build ./*.egg-info
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## remove the environments and the cached model as well
	rm -rf .venv .venv-engine .cache
