# make setup | demo | test | test-cluster | check | bench | lock | clean; PYTHON chooses the interpreter of the environment.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
DEMO   ?= demo

.PHONY: setup demo test test-cluster check bench lock clean

setup: $(VENV)/.ready

# The marker is the target: the environment is made again when the lock or the project's metadata change.
$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else f"mammoray needs Python 3.10 to 3.13, this is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

demo: setup
	$(BIN)/mammoray synth --outdir $(DEMO)/data --patients 100 --height 640 --width 512
	$(BIN)/mammoray train --csv $(DEMO)/data/train.csv --dicom-root $(DEMO)/data --outdir $(DEMO)/run --config jobs/demo.toml --num-workers 2

test: setup
	$(BIN)/python -m pytest -m "not long"

test-cluster: setup
	$(BIN)/python -m pytest -m "cluster or long"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/decode.py
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/fuzz.py
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python -W ignore benchmarks/scale.py
	$(BIN)/python benchmarks/remote.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python -W ignore benchmarks/train_ingest.py
	$(BIN)/python -W ignore benchmarks/train.py
	$(BIN)/python -W ignore benchmarks/tune.py
	$(BIN)/python benchmarks/catalog.py
	$(BIN)/python benchmarks/split.py
	$(BIN)/python benchmarks/audit.py

lock: setup
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.10 --extra dev --no-emit-index-url --no-emit-find-links \
		--no-header --no-annotate pyproject.toml -o requirements.lock >/dev/null

clean:
	rm -rf $(DEMO) $(VENV)
