# One word each: install, demo, test, bench, clean. Needs Python >= 3.11 and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/digits

.PHONY: install demo test bench lint clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "okdph_jax needs Python 3.11 or later; make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

demo: install  ## trains OKDPH on handwritten digits; a finished run is shown, not repeated
	$(BIN)/python -m okdph_jax.main --config=configs/digits.py --workdir=$(DEMO)

test: $(VENV)/tested
	$(BIN)/python -m pytest -q

lint: $(VENV)/tested
	$(BIN)/ruff format --check . && $(BIN)/ruff check .

bench: install  ## beside PyTorch, where it is installed
	$(BIN)/python -m benchmarks.train_step

clean:  ## the environment and the demo; nothing else
	rm -rf $(VENV) $(DEMO)
