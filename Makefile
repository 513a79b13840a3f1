# make search   a first search: the embedded teacher cut to 60 %, 6 to 12 minutes on two CPU cores
# make test     all tests
# make check    ruff and mypy
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup search test check

setup: $(VENV)/installed

# 3.11 or newer; pip says so itself when it is older. The marker is remade when the dependencies change.
$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

search: setup
	$(BIN)/python -m nas.search --model mini --budget 60% $(ARGS)

test: setup
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
