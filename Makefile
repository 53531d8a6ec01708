# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: setup demo test check lint bench lock clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Orchestrion needs Python 3.11 or newer; this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

# The main job with embedded defaults; `make demo DATA=some/folder` runs it on your own MIDI.
demo: setup
	$(BIN)/orchestrion demo $(if $(DATA),--source "$(DATA)")

# Everything, the slow tests (servers, Ray, training, kills) included.
test: setup
	$(BIN)/python -m pytest

# What to run before each commit: lint, types, fast tests.
check: setup lint
	$(BIN)/python -m pytest -m 'not slow' -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: setup
	for script in bench/bench_*.py; do $(BIN)/python $$script || exit 1; done

# Refresh the pins from what is installed now.
lock: setup
	$(BIN)/python -m pip freeze --exclude-editable > constraints.txt

clean:
	rm -rf $(VENV) .orchestrion .pytest_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
