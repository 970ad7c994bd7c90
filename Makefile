# Everything works from a bare clone: each target builds .venv first if it is not there.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: test test-all lint sweep bench bench-lr clean

test: lint
	$(BIN)/python -m pytest

test-all: lint
	$(BIN)/python -m pytest -m "" --durations=10

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

sweep: .venv
	$(BIN)/adamtune sweep configs/digits.yaml

bench: .venv
	$(BIN)/python -m benchmarks.startup

bench-lr: .venv
	$(BIN)/python -m benchmarks.lr_find

.venv: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[examples,dev]'
	@touch .venv

clean:
	rm -rf .venv build dist *.egg-info
