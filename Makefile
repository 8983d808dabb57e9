# `make` alone prints what there is to do. Everything runs in .venv, which is made on first use.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
RUN := $(VENV)/bin/python
RUNTIME := $(VENV)/.installed-requirements.txt
DEVELOPMENT := $(VENV)/.installed-requirements-dev.txt
DOCUMENTATION := $(VENV)/.installed-requirements-docs.txt
DATA := runs/quickstart-data

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-all chaos fuzz lint format docs clean

help:  ## print this
	@sed -n 's/^\([a-z-]*\):.*## /  make \1#/p' $(MAKEFILE_LIST) | awk -F'#' '{ printf "%-18s%s\n", $$1, $$2 }'

quickstart: $(RUNTIME)  ## make a small data set of synthetic sounds, train on it and score the result
	$(RUN) -m datar_jax.data.synthetic --root $(DATA) --clips-per-class 120
	$(RUN) train.py --config=configs/quickstart.py --workdir=runs/quickstart --config.data.root=$(DATA)

test: lint  ## lint, check types and run the quick tests
	$(RUN) -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-slow: $(DEVELOPMENT)  ## run the slow tests
	$(RUN) -m pytest -n $(WORKERS) --dist worksteal -m slow

test-all: test test-slow  ## lint, check types and run every test

chaos: $(DEVELOPMENT)  ## kill a training run thirty times, and every command at every write; fill the disk at some
	$(RUN) benchmarks/robustness/kill_and_resume.py
	$(RUN) benchmarks/robustness/torn_writes.py

lint: $(DEVELOPMENT)  ## check style, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(DEVELOPMENT)  ## rewrite the code in the house format
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

fuzz: $(DEVELOPMENT)  ## read 2,000 spoiled sounds, 3,000 spoiled models and data sets, and 2,000 exports with a flipped bit
	$(RUN) benchmarks/robustness/fuzz_audio.py
	$(RUN) benchmarks/robustness/fuzz_models.py
	$(RUN) benchmarks/robustness/flip_exports.py

docs: $(DOCUMENTATION)  ## run the example notebooks and build the documentation in build/site
	PYTHONPATH=$(CURDIR) $(RUN) -m nbconvert --to markdown --execute --output-dir docs/examples examples/*.ipynb
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet

clean:  ## remove caches and builds; .venv and runs stay
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# A copy of the list that was installed lies in .venv: a newer date alone installs nothing, other content does.

$(RUNTIME): requirements.txt | $(RUN)
	@cmp -s requirements.txt $@ || $(RUN) -m pip install --disable-pip-version-check --quiet -r requirements.txt
	@cp requirements.txt $@

$(DEVELOPMENT): requirements-dev.txt requirements-onnx.txt $(RUNTIME)
	@cat requirements-dev.txt requirements-onnx.txt | cmp -s - $@ || { \
	  $(RUN) -m pip install --disable-pip-version-check --quiet -r requirements-dev.txt && \
	  $(RUN) -m pip install --disable-pip-version-check --quiet --no-deps -r requirements-onnx.txt; }
	@cat requirements-dev.txt requirements-onnx.txt > $@

$(DOCUMENTATION): requirements-docs.txt $(RUNTIME)
	@cmp -s requirements-docs.txt $@ || $(RUN) -m pip install --disable-pip-version-check --quiet -r requirements-docs.txt
	@cp requirements-docs.txt $@

$(RUN):
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON): not found; name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "$(PYTHON) is Python %d.%d; DATAR-JAX needs 3.11 or newer: make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)
