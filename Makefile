# Two commands do everything: `make run` serves, `make test` proves.
.DEFAULT_GOAL := help
.PHONY: help install run doctor test lint format types bench lock clean peers fuzz

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install
JOBS ?= 2

# `make run` is for a laptop: an upstream on this machine is allowed. Production sets its own ranges.
export KEYSTILE_UPSTREAMS_ALLOW ?= 127.0.0.0/8,::1/128

help:
	@echo 'make run      set up if needed, then serve on 127.0.0.1:8080 (KEYSTILE_HOST, KEYSTILE_PORT, KEYSTILE_WORKERS,'
	@echo '              KEYSTILE_DATA_DIR, KEYSTILE_BOOTSTRAP_KEY, ...: see docs/config.md)'
	@echo 'make doctor   look for what is wrong, with the settings of make run'
	@echo 'make install  set up only: leaves .venv/bin/keystile'
	@echo 'make test     install what the tests need, then lint, type-check and run every test'
	@echo 'make bench    measure Keystile beside nginx, same work, one run'
	@echo 'make fuzz     fuzz the parsers and the envelope for a minute each'
	@echo 'make lock     rewrite requirements/*.txt'

install: .venv/.run

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Keystile needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv

.venv/.run: requirements/build.txt requirements/run.txt pyproject.toml | .venv/bin/python
	@echo '-- installing Keystile into .venv'
	@$(PIP) --require-hashes -r requirements/build.txt -r requirements/run.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

run: install
	@exec $(BIN)/keystile serve

doctor: install
	@$(BIN)/keystile doctor

peers: .venv/.test .venv-mcp1/.done node_modules/.done debian

.venv/.test: .venv/.run requirements/test.txt
	@echo '-- installing what the tests need into .venv'
	@$(PIP) --require-hashes -r requirements/test.txt
	@touch $@

.venv-mcp1/.done: requirements/mcp1.txt
	@echo '-- installing the handshake-era MCP client (mcp 1.30) into .venv-mcp1'
	@$(PYTHON) -m venv .venv-mcp1
	@.venv-mcp1/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes -r requirements/mcp1.txt
	@touch $@

node_modules/.done: package.json package-lock.json .venv/.test
	@echo '-- installing the Node peers into node_modules'
	@sh tests/node npm ci --no-audit --no-fund --loglevel=error
	@touch $@

.PHONY: debian
debian:
	@sh requirements/debian nginx-light nghttp2-client

test: peers lint types
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(PYTEST)

lint: .venv/.test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .

format: .venv/.test
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

types: .venv/.test node_modules/.done
	@PATH="$$(sh tests/node --bin):$$PATH" $(BIN)/pyright --warnings

bench: peers
	@$(BIN)/python -m bench.run $(BENCH)

fuzz: .venv/.test
	@$(BIN)/python -m tests.fuzz

lock:
	@requirements/lock
	@sh tests/node npm install --package-lock-only --omit-lockfile-registry-resolved --no-audit --no-fund

clean:
	rm -rf .venv .venv-mcp1 node_modules build dist .pytest_cache .ruff_cache .hypothesis
