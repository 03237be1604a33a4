# SPDX-License-Identifier: Apache-2.0
# Two commands on a fresh machine: `make demo` and `make test`. Both make their own environment in .venv.

ENGINE ?= transformers
MODEL  := .cache/models/SmolLM2-135M-Instruct
BIN    := .venv/bin
export PYTHON

# Two files at a time; what takes minutes begins first, so that both workers end together. (Every file is named: pytest
# would put those of a directory that it is given into the order of their names.)
LONG_ONES     := $(wildcard tests/integration/test_vllm_*.py tests/integration/test_embedded_*.py)
LONGEST_FIRST := tests/chaos $(LONG_ONES) $(filter-out $(LONG_ONES),$(wildcard tests/integration/test_*.py))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help env model demo test test-long upstream lint clean

help:  ## Show this
	@echo "zpptool: a large language model as a pipeline of stages on stock vLLM, over ZeroMQ"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  ENGINE=transformers|vllm  what computes the layers in env and demo (now: $(ENGINE))"
	@echo "  PYTHON=...                the Python to make .venv with, 3.11 or newer"

env: .venv/.ready-$(ENGINE)  ## Make or complete .venv for ENGINE (vllm: 4 GB)

model: $(MODEL)/config.json  ## Get a real small model, SmolLM2-135M-Instruct (269 MB)

demo: env model  ## Split the model in three, prove the split, run it, compare with the unsplit model
	@scripts/demo.sh $(MODEL) $(ENGINE)

test: .venv/.ready-vllm model lint  ## Run the test suite, real vLLM on the CPU included
	$(BIN)/python -m pytest -n 2 tests/unit tests/cli tests/hostile
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(LONGEST_FIRST)

test-long: .venv/.ready-vllm model  ## Run the tests that `make test` leaves out for their length
	$(BIN)/python -m pytest -m long

upstream: .venv/.ready-transformers  ## Try every model class with the oldest allowed and the newest transformers
	$(BIN)/python scripts/upstream.py

lint: .venv/.ready-transformers  ## Check style, types and who imports whom
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

clean:  ## Remove what demo and test leave; .venv and .cache stay
	rm -rf demo build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find zpptool tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written when its environment is whole, and is out of date when pyproject.toml or the lock is newer.
.venv/.ready-%: pyproject.toml requirements.lock scripts/make_env.sh
	@scripts/make_env.sh $*
	@touch $@

.venv/.ready-vllm: .venv/.ready-transformers

$(MODEL)/config.json: | .venv/.ready-transformers
	@$(BIN)/python scripts/get_model.py $(MODEL)
