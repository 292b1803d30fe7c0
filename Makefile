# The two commands of a newcomer: `make demo` and `make test`. Both install into .venv what is missing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# PIP_ARGS: further arguments of pip install, for example a constraints file or an index
# TORCH_INDEX: where torch and torchvision come from; empty: pip's own index, the CUDA build on Linux.
# By default PyTorch's index of CPU builds where no GPU is found; see scripts/torch_index.py.
TORCH_INDEX ?= $(shell $(BIN)/python scripts/torch_index.py $(PIP_ARGS))

.PHONY: demo test docs results-check wheel-check lower-bounds install clean help

help:
	@echo "make demo    install, train a model on bundled data, shrink it, print what came of it"
	@echo "make test    install with test tools, run ruff, mypy and the tests"
	@echo "make docs    write the docs site to site/ (open site/index.html)"
	@echo "make results-check   compare the tables of docs/ with results/*.parquet"
	@echo "make wheel-check     build the wheel, install it into a fresh venv, run a small sweep there"
	@echo "make lower-bounds    test the oldest versions of libraries that pyproject.toml allows"
	@echo "make install install into $(VENV) only"
	@echo "make clean   remove $(VENV) and runs/"
	@echo
	@echo "TORCH_INDEX=URL  where torch comes from; by default the CPU build where no GPU is found,"
	@echo "                 TORCH_INDEX= takes pip's own index (on Linux the CUDA build)"
	@echo "PIP_ARGS=...     further arguments of pip install"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; give it as PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# torch alone comes from its index; what is installed already is left as it is
$(VENV)/.torch: | $(BIN)/python
	@index="$(TORCH_INDEX)"; if [ -n "$$index" ]; then \
	  echo "torch from $$index (TORCH_INDEX= takes pip's own index)"; \
	  $(PIP) $(PIP_ARGS) --index-url "$$index" torch torchvision; fi
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.torch
	$(PIP) $(PIP_ARGS) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.torch
	$(PIP) $(PIP_ARGS) -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/.torch
	$(PIP) $(PIP_ARGS) -e '.[docs]'
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/sweeps run vit-digits
	[ -d runs/digits-vit ] || $(BIN)/sweeps export vit-digits 00000 -o runs/digits-vit
	$(BIN)/sweeps shrink runs/digits-vit --data digits --bytes 0.5x --max-loss 2% --hours 0.03 -o runs/digits-shrunk

# bytecode is kept: the tests start dozens of processes, which else compile all of it once more
test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	@echo "open site/index.html; with the search box: python3 -m http.server -d site"

results-check: $(VENV)/.installed-test
	$(BIN)/python -m analysis.published docs/results.md

wheel-check: $(VENV)/.installed
	PIP_ARGS="$(PIP_ARGS)" scripts/check_wheel.sh

lower-bounds:
	scripts/lower_bounds.sh

clean:
	rm -rf $(VENV) runs
