# The two commands of a newcomer: `make demo` and `make test`. Both install into .venv what is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# PIP_ARGS: further arguments of pip install, for example a constraints file or an index

.PHONY: demo test results-check install clean help

help:
	@echo "make demo    install, run a sweep on bundled data, print the front and the report's path"
	@echo "make test    install with test tools, run ruff, mypy and the tests"
	@echo "make results-check   compare the tables of docs/ with results/*.parquet"
	@echo "make install install into $(VENV) only"
	@echo "make clean   remove $(VENV) and runs/"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; give it as PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[test]'
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/sweeps run demo

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile

results-check: $(VENV)/.installed-test
	$(BIN)/python -m analysis.published docs/results.md

clean:
	rm -rf $(VENV) runs
