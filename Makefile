# `make help` lists the targets. Needs Python >= 3.11 and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
DEMO := runs/digits
# PyTorch's CPU build; the CUDA build on PyPI works as well but is several GB: make parity TORCH=torch
TORCH ?= torch==2.13.0+cpu
# The tests that come near every dependency, for `make test-lowest`.
CORE := tests/test_imports.py tests/test_losses.py tests/test_schedules.py tests/nn \
  tests/methods/test_okdph.py tests/training tests/cli tests/data

.PHONY: help install demo test parity test-lowest lint docs bench package clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

install: $(VENV)/installed  ## installs the package, editable, into .venv

$(VENV)/installed: pyproject.toml $(wildcard setup.py okdph_jax/nn/*.cc okdph_jax/runtime/*.c)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "okdph_jax needs Python 3.11 or later; make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/tested: $(VENV)/installed
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

$(VENV)/documented: $(VENV)/installed
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

$(VENV)/parity: $(VENV)/tested
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet "$(TORCH)"
	touch $@

demo: install  ## trains OKDPH on handwritten digits; a finished run is shown, not repeated
	$(BIN)/python -m okdph_jax.main --config=configs/digits.py --workdir=$(DEMO)

test: $(VENV)/tested  ## the whole test suite; tests that compare with PyTorch skip without it
	$(BIN)/python -m pytest -q

parity: $(VENV)/parity  ## installs PyTorch's CPU build and runs the tests named after it
	$(BIN)/python -m pytest -q -rs -k pytorch

test-lowest:  ## the core tests with the lowest versions that pyproject.toml allows
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --upgrade pip uv
	CXX=no-compiler $(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python \
	  --resolution lowest-direct --editable ".[test]"
	$(LOWEST)/bin/python -m pytest -q $(CORE)

lint: $(VENV)/tested  ## formatting and linting, as CI checks them
	$(BIN)/ruff format --check . && $(BIN)/ruff check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python

docs: $(VENV)/documented  ## the documentation as a site in site/; a dead link or an unlisted page is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: install  ## a training step, beside PyTorch's where that is installed
	$(BIN)/python -m benchmarks.train_step

package: $(VENV)/installed  ## builds sdist and wheel into dist/, and trains from the installed wheel
	$(BIN)/python .ci/package.py

clean:  ## removes the environments, the built packages, the site and the demo; nothing else
	rm -rf $(VENV) $(LOWEST) build dist site $(DEMO)
