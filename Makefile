.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow test-ray signatory bench gpu lint format clean

PYTHON ?= python3
BIN := .venv/bin
ARGS ?= model=cornn task=adding task.T=5000

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

train: setup  ## Train a coRNN on the adding problem at T = 5,000; another run with ARGS="model=lstm task=psmnist training.epochs=1"
	@$(BIN)/python train.py $(ARGS)
	@$(if $(filter command line,$(origin ARGS)),,$(BIN)/python -m results.report --runs outputs/runs --picture outputs/adding.png)

test: setup  ## Run the tests except the slow ones; options of pytest with ARGS=tests/tasks/test_adding.py, ARGS=-x, ...
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" $(if $(filter command line,$(origin ARGS)),$(ARGS))

test-slow: setup  ## Run the tests that take more than 20 s each
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m slow $(if $(filter command line,$(origin ARGS)),$(ARGS))

test-ray: setup  ## Run the tests of Ray's launcher, which cannot share an environment with joblib's
	@test -d .ray || $(BIN)/pip install --quiet --disable-pip-version-check --target .ray hydra-ray-launcher==1.2.2
	@PYTHONPATH=$(CURDIR)/.ray $(BIN)/python -m pytest tests/test_multirun.py tests/test_sweep.py -k ray

signatory: setup  ## Build signatory, a second log-signature library, against the installed torch; some minutes
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps signatory==1.2.6.1.9.0

bench: setup  ## Measure the speed of the kernels, on an idle machine; some minutes
	@$(BIN)/python -m longwave.benchmarks.kernels $(if $(filter command line,$(origin ARGS)),$(ARGS))

gpu: setup  ## Check, time and train with the Triton kernels on a GPU; 8 minutes
	@$(BIN)/python -m longwave.benchmarks.gpu $(if $(filter command line,$(origin ARGS)),$(ARGS))

lint: setup  ## Check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: setup  ## Fix style and formatting
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

setup: .venv/installed  ## Create the virtual environment, once

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Longwave needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=python3.12 ...")'
	@echo "Setting up .venv: once, some minutes, about 6 GB"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,joblib,submitit,export]'
	@touch $@

clean:  ## Remove the virtual environment and caches; keep runs and data
	rm -rf .venv .ray build *.egg-info .pytest_cache .ruff_cache
