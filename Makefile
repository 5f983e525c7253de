# Trajlake's targets; `make help` lists them. Everything runs in .venv, which they set up.

PYTHON ?= python3
# Arguments for pip that choose torch's build, such as an index of CPU or CUDA builds.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help build test check lint train dagster bench docs picture lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

build: $(VENV)/build ## set up, run the main job on raw/, export, and say what came of it
	dbt build
	trajlake export default
	trajlake summary

test: $(VENV)/test ## set up with torch and run every test, a file a core
	pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

train: $(VENV)/test build ## train a tiny model on the export, on the CPU
	accelerate launch -m train.sft --config train/configs/tiny.yaml

dagster: export DAGSTER_HOME := $(CURDIR)/.dagster
dagster: $(VENV)/orchestration ## every model, test and job in Dagster, at http://127.0.0.1:3000
	@mkdir -p $(DAGSTER_HOME)
	@cp orchestration/assets/dagster.yaml $(DAGSTER_HOME)/
	dagster dev --host 127.0.0.1 --port 3000

lint: $(VENV)/test ## formatting, types and SQL style
	ruff check
	ruff format --check
	mypy
	sqlfluff lint models dbt_project/tests

check: lint test ## what CI runs

bench: $(VENV)/test ## growth and comparisons, printed as tables (minutes)
	pytest -s tests/bench

docs: $(VENV)/build ## write dbt's documentation to target/
	dbt docs generate

picture: $(VENV)/test ## draw the lineage of the models, docs/lineage.svg, anew
	dbt parse
	python -m orchestration.model_graph docs/lineage.svg

lock: $(VENV)/test ## write the locks anew
	$(BIN)/pip install --quiet uv
	requirements/lock.sh

clean: ## remove what a build made; raw files, lake and exports stay
	rm -rf target logs trajlake.duckdb*

$(VENV)/bin/pip:
	@command -v $(PYTHON) > /dev/null || { echo "There is no $(PYTHON) here. Trajlake needs Python 3.11 to 3.13: install one, and name it if it has another name, as in: make PYTHON=python3.12 build"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else f"Trajlake needs Python 3.11 to 3.13 and {sys.executable} is {v.major}.{v.minor}. Set PYTHON, as in: make PYTHON=python3.12 build")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/build: $(VENV)/bin/pip requirements/build.lock pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements/build.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/orchestration: $(VENV)/build requirements/test.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements/test.lock --editable '.[orchestration]'
	@touch $@

$(VENV)/test: $(VENV)/build requirements/test.lock
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH) --constraint requirements/test.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements/test.lock
	@touch $@
