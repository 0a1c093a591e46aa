# Four targets: demo, test, check, bench. Each makes the environment (.venv) if need be.
PYTHON ?= python3
BIN := .venv/bin
# two test processes with one thread each: the tests are many and small
TEST_PROCESSES ?= 2

.PHONY: help demo test check bench env
help:
	@echo "make demo    fine-tune the embedded model, compare it with its base (minutes)"
	@echo "make test    all tests"
	@echo "make check   ruff, mypy, import contract, size limits"
	@echo "make bench   the figures of docs/benchmarks.md"

env:
	@$(PYTHON) tools/make_env.py

demo: env
	$(BIN)/halfbyte train recipes/demo.yaml
	$(BIN)/halfbyte compare latest --show 3

test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES)

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/check_sizes.py

bench: env
	$(BIN)/python bench/run_all.py
