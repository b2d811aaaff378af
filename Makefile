# `make demo` makes a film from a fresh clone; `make test` runs every test. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests of a module stay together, so that what they share is made once.
PYTEST := $(BIN)/python -m pytest -q -n auto --dist worksteal
COMPILE := import warp, expportrait_cli.painting.proxy.compositor, expportrait_cli.render.warp_backend; \
	warp.force_load(warp.get_devices())
STAMP := $(VENV)/.installed

.PHONY: setup demo test check types fast fuzz bench docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,eval]'
	# Warp compiles its kernels on their first use, and keeps them.
	$(BIN)/python -c "$(COMPILE)" > /dev/null
	touch $@

demo: setup
	$(BIN)/python examples/demo.py out/demo.mp4

test: setup
	$(PYTEST)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(MAKE) -j2 types fast

types: setup
	$(BIN)/pyright --pythonpath $(BIN)/python

fast: setup
	$(PYTEST) -m 'not slow and not gpu and not media'

fuzz: setup
	$(BIN)/python tests/fuzz/mutate.py
	$(BIN)/python tests/fuzz/interrupt.py

bench: setup
	$(BIN)/python examples/bench.py

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/properdocs build -q -f .mkdocs.yml

clean:
	rm -rf $(VENV) out build dist
