# Works from any folder (make -f …/Makefile, make -C …) and in folders whose names hold spaces.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

ROOT := $(shell cd "$$(dirname "$(strip $(MAKEFILE_LIST))")" && pwd)
CD := cd "$(ROOT)" &&
PY := .venv/bin/python

# What a caller may set: make test JOBS=4 PYTEST_ARGS="-k rollback", make images DOCKER=podman, make up UP_ARGS="--port 8080"
JOBS ?= 2
SLOW_JOBS ?= 3
PYTEST_ARGS ?=
UP_ARGS ?=
DOCKER ?= docker
# Several processes share the cores in the tests; torch's own threads on top would only make them queue. Slow tests mostly
# wait, for leases and for processes that start: one more of them than of the quick ones.
# Whole files go to a process, in their order: what a file prepares for its tests is prepared once, and the longest come early.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest --dist loadfile --no-loadscope-reorder
# What a caller picks may lie wholly among the quick tests or the slow ones; pytest then ends the other run with 5.
NONE_MAY_MATCH := $(if $(PYTEST_ARGS),|| [ $$? -eq 5 ])

.PHONY: help setup demo up test test-slow test-full lint format images clean

help: ## Show this list
	@$(CD) awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile

setup: ## Make .venv with everything in it (a few minutes once, instant afterwards)
	@$(CD) bash scripts/setup

demo: setup ## Watch it learn five tasks, forget, rehearse, gate and roll back
	@$(CD) $(PY) -m bench.demo

up: setup ## Start Postgres, Valkey, API and worker here, in the foreground
	@$(CD) .venv/bin/palimpsest up $(UP_ARGS)

test: setup ## Run the tests that take seconds
	@$(CD) $(PYTEST) -m "not slow" -n $(JOBS) $(PYTEST_ARGS) $(NONE_MAY_MATCH)

test-slow: setup ## Run only the tests that take longer
	@$(CD) $(PYTEST) -m slow -n $(SLOW_JOBS) $(PYTEST_ARGS) $(NONE_MAY_MATCH)

test-full: test test-slow ## Run every test

lint: setup ## Check style, format, types and the arrows between packages
	@$(CD) failed=(); \
	  $(PY) -m ruff check . || failed+=("ruff check"); \
	  $(PY) -m ruff format --check . || failed+=("ruff format"); \
	  $(PY) -m mypy || failed+=("mypy"); \
	  .venv/bin/lint-imports --no-logo || failed+=("lint-imports"); \
	  [ $${#failed[@]} -eq 0 ] || { printf 'lint: %s found something\n' "$${failed[@]}" >&2; exit 1; }

format: setup ## Rewrite the source in the project's style
	@$(CD) $(PY) -m ruff check --fix-only .
	@$(CD) $(PY) -m ruff format .

images: ## Build the container images palimpsest-api and palimpsest-worker
	@$(CD) for target in api worker; do \
	  $(DOCKER) build --target "$$target" $${TORCH_INDEX_URL:+--build-arg TORCH_INDEX_URL="$$TORCH_INDEX_URL"} \
	    -t "palimpsest-$$target" .; done

clean: ## Remove .venv, caches and build output
	@$(CD) rm -rf .venv .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .schemathesis \
	  .import_linter_cache
	@$(CD) find . -name __pycache__ -type d -prune -exec rm -rf {} +
