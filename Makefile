# `make ablation` and `make test` need python3 >= 3.11 and nothing else; `make test PYTHON=python3.13` runs on another.
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(notdir $(PYTHON))),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

.PHONY: help setup ablation test lint format clean

help:
	@echo "make ablation   the background trap and its cure on the embedded data set, in minutes"
	@echo "make test       the whole test suite (PYTHON=python3.13 for another interpreter)"
	@echo "make setup      $(VENV) with the pinned versions, and nothing more"
	@echo "make lint       ruff, as pre-commit runs it"
	@echo "make format     let ruff format and fix"
	@echo "make clean      remove $(VENV) and caches"

setup: $(READY)

ablation: $(READY)
	$(BIN)/python -m experiments.focal_ablation --workdir=runs/ablation

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis build .jax_cache *.egg-info

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("segjax needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,test]'
	@touch $@
