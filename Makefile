# make search       a first search, smaller than a real one: the embedded teacher cut to 60 %
# make test         all tests but the slow ones about faults
# make test-fault   all tests about faults, slow ones too: 23 to 32 minutes on 2 CPU cores
# make check        ruff, mypy and bandit
# make audit        known vulnerabilities of the installed packages; asks a public list
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FIRST := --screened 24 --trials 4 --finalists 2 --tokens-per-trial 16384 --calibration-samples 128

.PHONY: setup search test test-fault check audit

setup: $(VENV)/installed

# 3.11 or newer; pip says so itself when it is older. The markers are remade when the dependencies change.
$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(VENV)/installed $@

search: setup
	$(BIN)/python -m nas.search --model mini --budget 60% $(FIRST) $(ARGS)

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "not fault_slow" $(ARGS)

test-fault: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses 4 --dist loadfile --no-loadscope-reorder --durations 0 --durations-min 5 \
		$(ARGS) tests/fault tests/unit/nas/study/test_database.py

check: $(VENV)/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive nas trials search_spaces

# --strict fails when a package cannot be looked up. Without it, a machine without network would pass. The versions of
# torch that end in +cpu or +cu128 are looked up without that end.
audit: $(VENV)/installed-dev
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+.*//' > $(VENV)/frozen.txt
	$(BIN)/pip-audit --strict --progress-spinner off --disable-pip --no-deps --requirement $(VENV)/frozen.txt $(ARGS)
