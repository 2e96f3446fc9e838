# Everything runs in .venv, with the versions of constraints.txt. `make demo` and `make test` need nothing but Python >= 3.10.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/demo

.PHONY: demo test test-fast lint bench docs dist clean

demo: .venv/ready  ## teach the embedded model to follow its prompts; the report is $(OUT)/report.html; an earlier run is moved aside
	$(BIN)/dgpo train tiny --out $(OUT) --overwrite

test: .venv/ready-dev  ## the whole test suite, in two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-fast: .venv/ready-dev  ## the tests that are not marked slow: under a minute on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not slow"

lint: .venv/ready-dev  ## formatting, lint and types
	$(BIN)/ruff format --check src tests benchmarks tools
	$(BIN)/ruff check src tests benchmarks tools
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/ready  ## the figures of the README: hours
	$(BIN)/python benchmarks/demo.py

docs: .venv/ready-docs  ## the documentation, in site/; warnings are errors
	$(BIN)/python tools/build_docs.py

dist: .venv/ready-dist  ## the source archive and the wheel, in dist/, checked
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

# torch comes first and by exact version: where a CPU build of it is at hand, a range would still fetch the CUDA one.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/ready-docs: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

.venv/ready-dist: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dist]'
	touch $@

clean:
	rm -rf .venv site build dist
