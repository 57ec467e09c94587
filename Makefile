# Everything runs in .venv, which the first target makes; nothing needs root.
#   make quickstart   the main job, on real data, with an HTML report
#   make test         every check, as .ci/run makes them

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin

# The first interpreter that starts, is 3.11 or newer and can make environments.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
	>/dev/null 2>&1 && { echo $$p; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-ray smoke smoke-all docs lint types format clean

help:
	@sed -n 's/^#   //p' Makefile
	@echo "also: test-ray, smoke, smoke-all, docs, lint, types, format, clean"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "lowrank needs Python 3.11 or newer with venv;" \
		"none was found. Install one, or name it: make PYTHON=/path/to/python3" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp per set of extras: installed again only when pyproject.toml changes.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "installing lowrank[$*] into $(VENV) (a minute or two)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	@touch $@

.PRECIOUS: $(VENV)/.installed-%

quickstart: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks run quickstart
	@echo "report: $(CURDIR)/results/full/quickstart.html"

test: $(VENV)/.installed-dev
	PATH="$(abspath $(BIN)):$$PATH" scripts/check

# Ray is an extra of its own; where it is missing, `make test` passes its test over.
test-ray: $(VENV)/.installed-dev $(VENV)/.installed-ray
	$(BIN)/python -m pytest tests/benchmarks/test_ray_cluster.py -rs

smoke: $(VENV)/.installed-dev
	PATH="$(abspath $(BIN)):$$PATH" scripts/smoke

smoke-all: $(VENV)/.installed-dev
	PATH="$(abspath $(BIN)):$$PATH" scripts/smoke --all

docs: $(VENV)/.installed-dev
	PATH="$(abspath $(BIN)):$$PATH" scripts/docs

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(VENV)/.installed-dev
	$(BIN)/pyrefly check

clean:
	rm -rf $(VENV) .cache docs/_build build dist
