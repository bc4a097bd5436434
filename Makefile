# `make demo` and `make test` need only python3 (3.11 or newer): each makes its own environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test newest slow docs lint clean

# What is installed is written down last, so that an interrupted install is done again. Python compiles modules when they
# are first imported; to have pip compile all of them takes a quarter of the installation.
$(VENV)/run.stamp: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable .
	touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

demo: $(VENV)/run.stamp  ## text to a browsable dictionary of features, in minutes
	$(BIN)/python experiments/monosemanticity.py --preset=demo --workdir=runs/demo

test: $(VENV)/test.stamp  ## the tests that CI runs, in two processes
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
	XLA_FLAGS="$(XLA_FLAGS)" $(BIN)/python -m pytest -m bits tests/begin_test.py tests/sweep_test.py

NEWEST ?= python3.13
FAST := config settings runs layers tokenizer tokens recipes sae_step tables rows store transformer analysis versions

newest:  ## the fast part of the tests on another Python, with the newest jax that is allowed: make newest NEWEST=python3.13
	test -x $(VENV)-newest/bin/python || $(NEWEST) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --editable '.[test]'
	XLA_FLAGS="$(XLA_FLAGS)" $(VENV)-newest/bin/python -m pytest $(FAST:%=tests/%_test.py)

slow: $(VENV)/test.stamp  ## the tests that take longer, for instance killing the pipeline 20 times
	XLA_FLAGS="$(XLA_FLAGS)" $(BIN)/python -m pytest -m slow

docs: $(VENV)/test.stamp  ## the documentation, into build/docs; needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(VENV)/test.stamp
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) $(VENV)-newest build *.egg-info
