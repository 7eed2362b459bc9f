# make sweep   installs into .venv, runs the quickstart study, prints the front and where the report is
# make test    lint, format, types and the test suite
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STUDY ?= sweeps/quickstart.toml
# One thread a process unless a benchmark asks for more: the suite must not depend on idle cores. A process a core,
# up to four: each loads torch. All tests of a file go to the same one, which its fixtures are made for.
TEST_ENV := OMP_NUM_THREADS=1
PYTEST := $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

.PHONY: sweep test test-all bench check install clean

sweep: $(VENV)/installed
	$(BIN)/dse sweep $(STUDY)

test: check
	$(TEST_ENV) $(PYTEST) -m "not slow"

test-all: check
	$(TEST_ENV) $(PYTEST)

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/installed
	@for file in tests/benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

install: $(VENV)/installed

# Torch first and alone: its cap then holds for everything that the second line brings.
$(VENV)/installed: pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not on the path; install Python 3.11 or newer, or give its name: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: bitfront needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version)" >&2; exit 2; }
	@command -v c++ >/dev/null || command -v g++ >/dev/null || { echo "error: no C++ compiler on the path (c++ or g++); on Debian: apt-get install g++" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) has no venv module; on Debian: apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch<=2.13.0"
	$(BIN)/python -m pip install --quiet --editable ".[dev,imagenet,dask]"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
