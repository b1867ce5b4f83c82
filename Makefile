# Larder: every daily task. `make` or `make help` lists them; each target wraps one command of `.venv/bin/larder` or a tool.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
# With it set, every process compiles a thousand source files again: `larder ingest run` then starts in 6 s instead of 2.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3.11
DATASET ?= simulator
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.larder-setup
OPENMP ?= libgomp.so.1
HAS_OPENMP = $(BIN)/python -c 'import ctypes; ctypes.CDLL("$(OPENMP)")' 2>/dev/null

.PHONY: help setup demo monitor-demo test test-faults lint bench bench-features bench-quality bench-canary bench-serving bench-ope bench-uplift load-test prometheus docs lock clean

help: ## Show this list
	@echo "Larder. Usage: make TARGET [DATASET=name] [ARGS=\"options\"]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  DATASET  data set of the demo: simulator (default), online_retail"
	@echo "  ARGS     options passed on, for example: make demo ARGS=--once    make test ARGS=\"-k fold -x\""
	@echo "  PYTHON   interpreter that creates $(VENV) (default: python3.11)"

setup: $(STAMP) ## Create .venv with the locked dependencies (only when something changed)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
	  echo "make setup: Larder needs Python 3.11, and '$(PYTHON)' is not one (or cannot be run)." >&2; \
	  echo "Install it, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "make setup: '$(PYTHON) -m venv' failed; on Debian and Ubuntu it is in the package python3.11-venv." >&2; exit 1; }
	@echo "make setup: installing the locked packages into $(VENV); the first time they are downloaded"
	@# uv itself comes from the lock file too, pinned by hash.
	@awk '/^uv==/ { take = 1; print; next } take && /^[^ ]/ { exit } take' requirements.lock > $(VENV)/requirements-bootstrap.lock
	@$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r $(VENV)/requirements-bootstrap.lock
	@# uv is several times faster than pip, but knows no pip.conf: where it finds no index, pip does the work.
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes requirements.lock || { \
	  echo "make setup: uv could not install; trying pip" >&2; \
	  $(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements.lock; }
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --offline --no-deps --no-build-isolation --editable .
	@# implicit's ALS needs the OpenMP runtime: the one system library that comes in no wheel.
	@[ "$$(uname -s)" != Linux ] || $(HAS_OPENMP) || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && apt-get install -y -qq libgomp1 && $(HAS_OPENMP); } || { \
	  echo "make setup: the OpenMP runtime (libgomp.so.1) is missing; on Debian and Ubuntu: sudo apt-get install libgomp1" >&2; exit 1; }
	@touch $@
	@echo "make setup: done"

demo: setup ## The whole story on DATASET; leaves everything running until Ctrl-C (ARGS=--once: ends by itself)
	$(BIN)/larder demo --dataset $(DATASET) $(ARGS)

monitor-demo: setup ## A watched shop: a drift and an alert are provoked and noticed (5 min; ARGS=--once: ends by itself)
	@$(MAKE) --no-print-directory prometheus || echo "make monitor-demo: without Prometheus there are no alerts"
	$(BIN)/larder monitor-demo $(ARGS)

test: setup ## All tests but the fault injections, on real services
	$(BIN)/python -m pytest -m "not faults" $(ARGS)

test-faults: setup ## Tests that kill and stall real processes
	$(BIN)/python -m pytest -m faults $(ARGS)

lint: setup ## ruff (rules and format), mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup ## Exact figures, written to .larder/results
	$(BIN)/larder bench $(ARGS)

bench-features: setup ## Speed and size of the feature store, as ratios to Feast's stock path (about 20 min)
	$(BIN)/larder bench feature_reads feature_writes offline_joins backfill ingest item_table heavy_entity skew

bench-quality: setup ## Every model x data set x metric with intervals, in one table and in MLflow (40 minutes)
	$(BIN)/larder bench quality

bench-serving: setup ## The API under rising load, beside a bare server and Feast's SDK (about 12 min, on a quiet machine)
	$(BIN)/larder bench serving

bench-ope: setup ## Off-policy estimates beside the truth: Open Bandit and simulated logs (1 min)
	$(BIN)/larder bench ope

bench-uplift: setup ## An A/B test over HTTP on simulated shops: uplift, share of the oracle's, power (about 15 min)
	$(BIN)/larder bench uplift

load-test: setup ## Locust on the project of DATASET, held to its objectives (ARGS="spike --rate 60 --seconds 90")
	$(BIN)/larder --project $(DATASET) load-test $(ARGS)

bench-canary: setup ## False rollbacks, and time to true ones, of the rollout's statistics on simulated traffic (5 min)
	$(BIN)/larder bench canary

prometheus: ## Unpack Prometheus and promtool of Debian's package into .larder/tools, without root
	monitoring/prometheus/fetch .larder/tools/prometheus

docs: setup ## Write the generated pages: docs/features.md, docs/settings.md, Grafana's dashboards
	$(BIN)/larder features describe --write docs/features.md
	$(BIN)/larder settings --markdown > docs/settings.md
	$(BIN)/python -m monitoring.dashboards

lock: setup ## Resolve pyproject.toml again into the three lock files (needs a package index)
	$(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header --no-annotate --all-extras \
	  --python-version 3.11 pyproject.toml -o requirements.lock
	@# What images have, in the same versions: no tests, no linters, no JAX; MLflow's has MLflow alone.
	$(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header --no-annotate --extra tracing \
	  --python-version 3.11 --constraint requirements.lock pyproject.toml -o requirements-run.lock
	$(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-header --no-annotate \
	  --python-version 3.11 --constraint requirements.lock mlflow/requirements.in -o mlflow/requirements.lock

clean: ## Remove caches, build output and .venv; data in .larder stays
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis catboost_info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
