# make train: install into .venv and align the tiny world's model. make test: install what tests need and run them.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

.PHONY: train test lint

train: .venv/installed
	$(BIN)/vader train tiny

test: .venv/installed-test
	$(BIN)/python -m pytest

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
