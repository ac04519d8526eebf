# Everything runs in .venv, made on first use with nothing but python3 (>= 3.11), pip and make.
# Another Python: make PYTHON=/usr/bin/python3.12 demo
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint bench clean

# pip stays outside of it: Debian's python3 has no ensurepip, and its own pip refuses to install into the system.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "json-repl needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=/path/to/python3")'
	@$(PYTHON) -m pip --version > /dev/null || { echo "pip is missing: apt install python3-pip, or name another Python: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Setting up $(VENV), this first time only: about 800 MB, from the package index"
	$(PYTHON) -m venv --without-pip $(VENV)
	$(PYTHON) -m pip --python $(BIN)/python install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/json-repl demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m 'not slow'

test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -n auto --maxprocesses 2 --dist worksteal -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What is only measured, beside ours: apart, since it pins libraries. Without it, its rows say so.
$(VENV)/peers/.installed: $(VENV)/.installed
	$(PYTHON) -m venv --without-pip $(VENV)/peers
	@$(PYTHON) -m pip --python $(VENV)/peers/bin/python install --quiet --disable-pip-version-check dill kishu numpy \
		&& touch $@ || { rm -rf $(VENV)/peers; echo "dill and Kishu don't install here: measuring without them" >&2; }

bench: $(VENV)/.installed $(VENV)/peers/.installed
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build
