# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# The tests start some hundred interpreters, each of which would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

# Tests that share something expensive form a group, which one worker runs; `tests/conftest.py` says which.
PYTEST := $(BIN)/python -m pytest -n 4 --dist loadscope --no-loadscope-reorder

.PHONY: setup demo test check fast lint nightly bench docs lock clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Orchestrion needs Python 3.11 or newer; this is " + sys.version.split()[0])'
	@echo "Setting up $(VENV): $$(grep -c == constraints.txt) packages, 4 GB on disk; from PyPI, torch for Linux adds some GB of CUDA."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m tasks.dataset.precompile
	@touch $(STAMP)

# The main job with embedded defaults; `make demo DATA=some/folder` runs it on your own MIDI.
demo: setup
	$(BIN)/orchestrion demo $(if $(DATA),--source "$(DATA)")

# Everything that asserts behaviour, the slow tests (servers, Ray, training, kills) included.
test: setup
	$(PYTEST) -m 'not nightly'

# What to run before each commit: lint, types and fast tests, side by side.
check: setup
	$(MAKE) --no-print-directory -j 2 fast lint

fast: setup
	$(PYTEST) -n 2 -m 'not slow and not nightly' --hypothesis-profile=check

# The same tests with all examples of hypothesis, and the long tail: all real files, million-file and chaos runs.
nightly: setup
	$(PYTEST) --hypothesis-profile=nightly

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: setup
	for script in bench/bench_*.py; do $(BIN)/python $$script || exit 1; done

# Write the pages and tables in docs/ that are made from the code.
docs: setup
	$(BIN)/python -m tests.made_pages

# Refresh the pins from what is installed now.
lock: setup
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt

clean:
	rm -rf $(VENV) .orchestrion .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
