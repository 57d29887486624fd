# Everything a user or CI runs. Each target does its own set-up; a second run reuses the environment.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ifneq ($(wildcard ../shared/traces),)
export RAYFOLD_TRACES ?= $(abspath ../shared/traces)
endif
# One thread per process: two on a small shared machine stall in each other's way.
export OMP_NUM_THREADS ?= 1
DEMO_JSON ?= out/demo.json

.PHONY: venv test lint demo benchmark clean clean-cache

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("rayfold needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip # an interrupted or bare environment
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -n 2 --dist loadfile -m "not cluster"
	$(BIN)/pytest -m cluster # one cluster at a time

demo: venv
	$(BIN)/rayfold demo --json $(DEMO_JSON)

# The README's table on validation days; QUICK=1 takes minutes and says little.
benchmark: venv
	$(BIN)/python benchmarks/arena.py $(if $(QUICK),--quick)

# Numba's cache does not see that a kernel in another file has changed.
clean-cache:
	find . -path ./$(VENV) -prune -o \( -name '*.nbi' -o -name '*.nbc' \) -print | xargs rm -f

clean: clean-cache
	rm -rf $(VENV) build dist out src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
