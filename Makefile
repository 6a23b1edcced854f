# `make run` and `make test` set everything up by themselves: Python >= 3.11 with venv, make and a package index are enough.
RECIPE ?= recipes/mobilenet.yaml
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
UV     := 0.13.9
WORKERS ?= 2
# Processes beside each other, each with one thread; the tests of one file stay together, so fixtures are made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Scripts are checked less strictly than the two packages.
SCRIPTS := --allow-any-generics --allow-untyped-calls --implicit-reexport --no-warn-return-any --allow-subclassing-any

.PHONY: run test test-unit test-all lint setup lock clean
run: setup
	@$(BIN)/compress run $(RECIPE)

# What a change needs: under 3 minutes on two cores, under 15, everything (under 75).
test-unit: setup
	@$(PYTEST) -m "not slow and not extended"

test: setup
	@$(PYTEST) -m "not extended"

test-all: setup
	@$(PYTEST)

lint: setup
	@$(BIN)/ruff check compress export tests benchmarks tools
	@$(BIN)/ruff format --check -q compress export tests benchmarks tools
	@$(BIN)/lint-imports > /dev/null || $(BIN)/lint-imports
	@$(BIN)/mypy
	@$(BIN)/mypy $(SCRIPTS) benchmarks/*.py tools/*.py

# The documentation as a site in site/. It loads nothing from elsewhere, neither here nor in a reader's browser.
.PHONY: docs
docs: setup
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html"

setup: $(READY)

# Bytecode is compiled once, so that no start of a command does it where Python may not keep it (PYTHONDONTWRITEBYTECODE, read-only folders).
# The exact versions of requirements.lock, with uv (three times faster than pip), or with pip where uv does not reach the index.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("compress needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing requirements.lock into $(VENV)"
	@( $(BIN)/python -m pip install -q --disable-pip-version-check uv==$(UV) \
	   && $(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock \
	   && $(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e . ) \
	 || ( echo "uv did not reach the index, trying pip" \
	   && $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock \
	   && $(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e . )
	@touch $(READY)

lock:
	@$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --python-version 3.11 --no-header -o requirements.lock

clean:
	rm -rf $(VENV) artifacts/cache artifacts/runs
