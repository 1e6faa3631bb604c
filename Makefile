# Every target sets up .venv by itself.
PYTHON ?= python3
# The version the tests were run with. On a cluster name the site's build, e.g. TORCH=torch==2.8.0+cu128.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Files of tests side by side. Many start processes of their own, so that 2 keep 2 to 8 cores busy.
TEST_WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile

export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: help demo test test-all test-megatron-next check format bench setup clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(READY)

setup: $(READY)  ## the virtual environment

demo: $(READY)  ## the main job: four methods compared on English and En-Clone, about 3 minutes on 2 cores
	$(BIN)/megalign study run examples/enclone/demo.yaml

test: $(READY)  ## all tests but the slow ones
	$(PYTEST) -m "not slow and not gpu"

test-all: $(READY)  ## all tests, the slow ones included
	$(PYTEST) -m "not gpu"

# Another Megatron-Core: newer ones ask for a newer Python, but what the engine uses of them runs here too.
MEGATRON_NEXT ?= 0.19.2
NEXT := $(VENV)/megatron-core-$(MEGATRON_NEXT)

$(NEXT)/.ready: $(READY)
	rm -rf $(NEXT) && mkdir -p $(NEXT)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
		--dest $(NEXT) "megatron-core==$(MEGATRON_NEXT)"
	$(BIN)/python -m zipfile -e $(NEXT)/*.whl $(NEXT)
	rm $(NEXT)/*.whl && touch $@

test-megatron-next: $(NEXT)/.ready  ## the engine's tests on the Megatron-Core that will come
	PYTHONPATH=$(NEXT) $(PYTEST) -m "not slow and not gpu" tests/engine tests/distributed

check: $(READY)  ## lint, format, types, forbidden arrows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## measure speed: prints tables, asserts nothing
	$(BIN)/python tests/benchmarks/train_step.py --shape tiny
	$(BIN)/python tests/benchmarks/train_step.py --shape 12x512
	$(BIN)/python tests/benchmarks/injection.py --shape tiny
	$(BIN)/python tests/benchmarks/injection.py --shape 12x512
	$(BIN)/python tests/benchmarks/codeswitching.py --no-step

clean:  ## remove the environment and all runs
	rm -rf $(VENV) runs
