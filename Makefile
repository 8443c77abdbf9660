# Each target makes .venv when it is missing. Everything comes from a package index; nothing from a model hub.
PYTHON ?= python3
WORKERS ?= 2
LOCKED ?= 1
BIN := .venv/bin
export TOKENIZERS_PARALLELISM ?= true

.PHONY: help check demo test lint types bench docs clean

help: ## show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# The versions of requirements-dev.txt, unless LOCKED is empty (`make test LOCKED=`). torch first and pinned: a plain
# `torch` would bring several GB of CUDA packages.
.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet $(if $(LOCKED),-c requirements-dev.txt) -e '.[all]'
	@touch $@

demo: .venv/.installed ## export a real multilingual encoder, load the sample corpus, ask it questions in ten languages
	$(BIN)/xqg-vdb demo

# A worker takes half of the other's tests when it has none left, so that long tests at the end do not wait for each other.
test: .venv/.installed ## all tests, in WORKERS processes; those that need a Qdrant server run when XQG_TEST_QDRANT_URL is set
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

lint: .venv/.installed ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.installed ## mypy --strict
	$(BIN)/mypy

check: lint types test ## what the gate runs

bench: .venv/.installed ## benchmarks against what one would use instead (minutes; needs data for encode.py)
	$(BIN)/python benchmarks/encode.py
	$(BIN)/python benchmarks/store.py

docs: .venv/.installed ## the documentation site, in build/site
	$(BIN)/mkdocs build

clean: ## remove the environment and what the demo wrote
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis xqg-data build dist
