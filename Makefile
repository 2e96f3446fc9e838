# Everything runs in .venv, with the versions of constraints.txt. `make demo` and `make test` need nothing but Python >= 3.10.
# The targets use .venv by path. A shell needs `source .venv/bin/activate` to find dgpo.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/demo
RUNS ?= runs

.PHONY: demo studio teach test test-fast test-browser lint bench docs dist clean

demo: .venv/ready  ## teach the embedded model to follow its prompts; the report is $(OUT)/report.html; an earlier run is moved aside
	@echo 'dgpo is installed in .venv. To use it in this shell: source .venv/bin/activate'
	$(BIN)/dgpo train tiny --out $(OUT) --overwrite
	@echo 'Before you use the dgpo commands in this shell: source .venv/bin/activate'

studio: .venv/ready-studio  ## watch the runs in $(RUNS) in a browser
	mkdir -p $(RUNS)
	$(BIN)/dgpo studio $(RUNS)

teach: .venv/ready-studio  ## teach the embedded model by picking pictures in a browser
	$(BIN)/dgpo teach tiny-sd3 || test $$? -eq 130  # Ctrl-C is how it ends

test: .venv/ready-dev  ## the whole test suite, in two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-fast: .venv/ready-dev  ## the tests that are not marked slow: under a minute on two cores
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not slow"

test-browser: .venv/ready-browser  ## the tests of the studio in Chromium: a minute or two
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/studio/test_browser.py tests/studio/test_teach_browser.py

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

.venv/ready-%: .venv/ready  # with an extra: dev, studio, docs, dist
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

.venv/ready-browser: .venv/ready-dev
	tools/install_chromium.sh
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	touch $@

clean:
	rm -rf .venv site build dist
