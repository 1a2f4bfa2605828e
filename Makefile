# make train: install into .venv and align the tiny world's model. make test: install what tests need and run them.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: train test lint

train: .venv/installed
	$(BIN)/vader train tiny

# A process a core, up to four, each with one thread; a file's tests stay together, as they share what is costly to make.
test: .venv/installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

lint: .venv/installed-test
	$(BIN)/ruff check src tests
	$(BIN)/ruff format --check src tests
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

# A stamp file is newer than what it was installed from, so that nothing is installed twice.
.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(INSTALL) --editable '.[test]'
	touch $@
