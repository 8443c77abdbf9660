# Each target installs into .venv what it needs and is not there yet. Everything comes from a package index; nothing from
# a model hub.
PYTHON ?= python3
WORKERS ?= 2
LOCKED ?= 1
TORCH_INDEX ?=
BIN := .venv/bin
# the versions of requirements-dev.txt, unless LOCKED is empty (`make test LOCKED=`)
LENIENT := $(foreach code,arg-type assignment dict-item index operator abstract,--disable-error-code $(code))
PIP := $(BIN)/pip install --quiet --disable-pip-version-check $(if $(LOCKED),-c requirements-dev.txt)
export TOKENIZERS_PARALLELISM ?= true

.PHONY: help check demo test journeys scale faults lint types bench bench-check docs clean

help: ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# A marker for each set of extras. This one has neither torch nor transformers: search, load and the starter encoder.
.venv/.starter: pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) -e '.[starter]'
	@touch $@

# torch comes first, from where TORCH_INDEX says: what it brings of CUDA is most of the download.
.venv/.all: .venv/.starter
	@echo "Installing all extras: some 2.5 GB are downloaded, 6 GB on disk, most of it torch's CUDA packages; without them:"
	@echo "  make test TORCH_INDEX=https://download.pytorch.org/whl/cpu"
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(PIP) -e '.[all]'
	@touch $@

demo: .venv/.starter ## load the sample corpus with a real multilingual encoder and ask it questions in ten languages (no torch)
	$(BIN)/xqg-vdb demo

# A worker takes half of the other's tests when it has none left, so that long tests at the end do not wait for each other.
test: .venv/.all ## all tests, in WORKERS processes; those that need a Qdrant server run when XQG_TEST_QDRANT_URL is set
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

journeys: ## what a newcomer types, from README and the tutorial: a fresh clone, an empty cache; prints minutes and megabytes
	$(PYTHON) tests/journeys.py

scale: .venv/.all ## loads and generation on a local cluster of Ray, with kills, its speed and what a corpus costs (extra ray, 280 MB)
	$(BIN)/pip install --quiet --disable-pip-version-check 'ray[data]>=2.50'
	XQG_TEST_KILLS=20 $(BIN)/python -m pytest tests/test_ray.py
	$(BIN)/python benchmarks/scale.py

faults: .venv/.all ## the fault rig, 100 rounds of each attack (an hour; some need root or strace); writes docs/reliability.md
	$(BIN)/python tests/faults/rig.py --rounds 100 --write

lint: .venv/.all ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.all ## mypy --strict; of benchmarks and examples that they call what there is
	$(BIN)/mypy
	$(BIN)/mypy --config-file= --ignore-missing-imports --follow-imports=silent $(LENIENT) benchmarks examples

check: lint types test ## what the gate runs

bench: .venv/.all ## benchmarks against what one would use instead (minutes; needs data for encode.py)
	$(BIN)/python benchmarks/encode.py
	$(BIN)/python benchmarks/store.py

bench-check: .venv/.all ## whether ratios fell since they were recorded for this class of CPU, benchmarks/ratios.json (minutes)
	$(BIN)/python benchmarks/check.py

docs: .venv/.all ## the documentation site, in build/site
	$(BIN)/zensical build --strict

clean: ## remove the environment and what the demo wrote
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis xqg-data build dist
