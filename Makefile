# Two commands for a newcomer: `make quickstart` and `make test`. Later commands need no make: .venv/bin/minift VERB
PYTHON ?= python3
BIN = .venv/bin

.PHONY: quickstart test parity notebooks mutants
quickstart: .venv/installed
	$(BIN)/minift quickstart

test: .venv/tested
	$(BIN)/python -m pytest -q --ignore=tests/parity

parity: .venv/judged
	$(BIN)/python -m pytest -q tests/parity

mutants: .venv/tested
	$(BIN)/python -m tests.mutants.run

notebooks: .venv/judged
	$(BIN)/python -m notebooks.execute

# torch first and by its exact pin: a looser wish would bring gigabytes of CUDA to a machine without a GPU
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

.venv/judged: .venv/tested
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev,parity,notebooks]"
	touch $@
