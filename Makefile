# `make ablation` and `make test` need python3 >= 3.11 and nothing else; `make test PYTHON=python3.13` runs on another.
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(notdir $(PYTHON))),-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DOCS_READY := $(VENV)/.docs-ready
WORKERS ?= 2
# What `make test` and `make test-slow` are told besides, for instance `TESTS=tests/losses`.
TESTS ?=
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# XLA's older code generator compiles in less time. The slow tests of losses, prediction and the training step are compiled
# by the default one, which users run.
DEFAULT_COMPILATION := tests/losses tests/inference tests/training/test_train_step.py
REPORTS := focal_ablation prior_init sgd_focal ohem_vs_focal focal_star loss_curves training_length

.PHONY: help setup ablation reproduce benchmark faults docs test test-slow lint format clean

help:
	@echo "make ablation   the background trap and its cure on the embedded data set, in minutes"
	@echo "make reproduce  every table of the focal loss paper, and more; many hours, and it can be cut"
	@echo "make benchmark  speed beside the libraries people would use instead, as far as installed (BENCH=1 installs them)"
	@echo "make faults     20 kills and half an hour of watching a run; 40 minutes"
	@echo "make test       the test suite without its slow part (PYTHON=python3.13 for another interpreter)"
	@echo "make test-slow  the rest: processes, kills, a browser, a bucket, sweeps, the TPU compiler"
	@echo "make docs       the documentation as a site, site/index.html; a broken link is an error"
	@echo "make setup      $(VENV) with the pinned versions; then source $(BIN)/activate, and segjax --help"
	@echo "make lint       ruff, as pre-commit runs it"
	@echo "make format     let ruff format and fix"
	@echo "make clean      remove $(VENV) and caches"

setup: $(READY)

ablation: $(READY)
	@echo "Five small networks are trained, with and without the prior bias: about 3 minutes on two CPU cores."
	$(BIN)/python -m experiments.focal_paper.focal_ablation --preset=smoke --processes=$(WORKERS) --workdir=runs/ablation
	@echo "Next: source $(BIN)/activate && segjax train --config=road_debris_uncertainty --workdir=runs/debris"

# Every cell is trained once: what was cut, or is there, is not trained again.
reproduce: $(READY)
	set -e; for data in road_debris $(if $(SEGJAX_CRACKFOREST_DIR),crackforest); do \
	  for report in $(REPORTS); do \
	    $(BIN)/python -m experiments.focal_paper.$$report --preset=cpu --data=$$data --processes=$(WORKERS) --workdir=runs/$$report; \
	  done; \
	  $(BIN)/python -m experiments.focal_paper.background_trap --data=$$data --seed=0 --seed=1 --workdir=runs/background_trap; \
	done
	set -e; for report in $(filter-out training_length,$(REPORTS)); do \
	  $(BIN)/python -m experiments.focal_paper.$$report --preset=cpu --data=road_debris_boxes --processes=$(WORKERS) --workdir=runs/$$report; \
	done
	$(BIN)/python -m experiments.focal_paper.boxes_and_pixels --workdir=runs/boxes_and_pixels
	$(if $(SEGJAX_CAMVID_DIR),$(BIN)/python -m experiments.camvid.uncertainty_ladder --workdir=runs/uncertainty_ladder)

# PyTorch and what stands on it is several GB: only if asked for. Huge pages, for all libraries alike: with small ones
# much of the time of the faster losses is the system's, which clears pages. And threads that wait leave the CPUs alone.
benchmark: $(READY)
	$(if $(BENCH),$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,bench]')
	OMP_WAIT_POLICY=passive GLIBC_TUNABLES=$${GLIBC_TUNABLES-glibc.malloc.hugetlb=1} \
	  $(BIN)/python -m experiments.benchmarks --workdir=runs/benchmarks

faults: $(READY)
	$(BIN)/python -m experiments.fault_injection.faults --kills=20 --workdir=runs/faults
	$(BIN)/python -m experiments.fault_injection.soak --minutes=30 --workdir=runs/soak

docs: $(DOCS_READY)
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --fresh-env --builder html docs site
	@touch site/.built
	@echo "wrote site/index.html"

test: $(READY)
	SEGJAX_FAST_COMPILATION=1 $(PYTEST) -m "not slow" $(TESTS)

test-slow: $(READY)
	$(if $(TESTS),,$(PYTEST) -m slow $(DEFAULT_COMPILATION))
	SEGJAX_FAST_COMPILATION=1 $(PYTEST) -m slow $(or $(TESTS),$(DEFAULT_COMPILATION:%=--ignore=%))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache .hypothesis build .jax_cache *.egg-info

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("segjax needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0])'
	@echo "Installing the pinned versions in $(VENV), which takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,test]'
	@touch $@

$(DOCS_READY): $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[train,docs]'
	@touch $@
