# Two commands do everything, set-up included: `make bench` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# pytest-benchmark is off in parallel runs: what uses it, or times anything, runs by itself
ALONE := tests/benchmarks tests/test_pytest_plugin.py

.PHONY: bench test lint mutation kernels wheel clean

bench: $(VENV)/installed  ## measure suites/cpu.yaml on this machine's CPU and draw it
	$(BIN)/marlin-bench run suites/cpu.yaml
	$(BIN)/marlin-bench show
	$(BIN)/marlin-bench plot roofline
	$(BIN)/marlin-bench plot speedup

test: $(VENV)/installed-dev  ## all tests that need no GPU; `make kernels` compiles what they leave out
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m 'not every_build' $(addprefix --ignore=,$(ALONE))
	$(BIN)/python -m pytest $(ALONE)

lint: $(VENV)/installed-dev  ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

mutation: $(VENV)/installed-dev  ## reverse every comparison of what judges: a test must notice each (minutes)
	$(BIN)/python tests/mutation.py

kernels: $(VENV)/installed-dev  ## build every kernel for every architecture, without a GPU
	$(BIN)/marlin-bench kernels --build

wheel: $(VENV)/installed-dev
	$(BIN)/python -m build --wheel --outdir dist

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@ $(VENV)/installed
