# Everything runs in .venv, which is made when it is first needed. `make help` lists the targets.
# Paths are relative and the checkout's own path is quoted, so it may contain spaces.

PY := .venv/bin/python
WSSS := $(PY) -m wsss_lib.cli
UV := $(PY) -m uv pip install --python $(PY)
READY := .venv/.installed
PROFILE ?= demo
# Two processes of one thread each: two of two threads on two cores ruin each other.
JOBS ?= 2
ONE_THREAD := OMP_NUM_THREADS=1
NBVAL := --nbval --nbval-current-env --nbval-cell-timeout 600 \
         --nbval-sanitize-with tests/notebooks/nbval_sanitize.cfg --dist loadfile

# A moved or copied checkout installs itself anew: .venv holds the path of the place it was made in.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
$(shell rm -f $(READY))
endif

.PHONY: help demo test lint units smoke nbval lab notebooks bench lock clean
.DEFAULT_GOAL := help
.NOTPARALLEL:

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(READY) ## the whole course on toy scenes: notebooks executed headless, then the table of results
	@$(WSSS) run all --profile $(PROFILE)
	@echo
	@$(WSSS) results
	@echo
	@echo "Open the executed notebooks (runs/) and the lessons (notebooks/) in a browser: make lab"

test: lint units smoke nbval ## everything that CI checks

lint: $(READY) ## style: ruff over code and notebooks
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

units: $(READY) ## unit tests and doctests, notebooks against their sources
	$(ONE_THREAD) $(PY) -m pytest -q -n $(JOBS) -m "not notebooks" --doctest-modules wsss_lib data_prep tests

smoke: $(READY) ## every notebook executed with the smoke profile
	$(ONE_THREAD) $(PY) -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder -m notebooks tests

nbval: $(READY) ## every notebook executed as committed (demo profile), outputs compared
	@rm -rf build/nbval
	WSSS_PROFILE=demo WSSS_RUNS="$(CURDIR)/build/nbval/runs" $(ONE_THREAD) \
	    $(PY) -m pytest -q -n $(JOBS) $(NBVAL) notebooks

lab: $(READY) ## the notebooks in JupyterLab
	$(PY) -m jupyterlab notebooks/00_start.ipynb

notebooks: $(READY) ## notebooks/*.ipynb from notebooks/src/*.py, executed; ONLY=01_cam for one
	$(PY) notebooks/build.py $(if $(ONLY),--only $(ONLY))

bench: $(READY) ## every claim about speed or memory, measured; fails where one does not hold
	@$(PY) -m benchmarks

lock: $(READY) ## requirements.lock from pyproject.toml; UPGRADE=1 takes the newest versions
	$(PY) -m uv pip compile -q --universal --python-version 3.11 --all-extras --no-annotate \
	    --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) -o requirements.lock pyproject.toml

clean: ## caches and build outputs; keeps .venv, data and runs
	rm -rf build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name .venv -prune -o -name __pycache__ -prune -exec rm -rf {} +

# One recipe, so that an interrupted installation begins anew; what is missing is said before anything is made.
# pydensecrf2 is built with the lock's Cython: the one that it asks for stops at Python 3.12.
# Bytecode is compiled once here; where Python may not write it, each notebook would wait 10 s longer for its imports.
$(READY): pyproject.toml requirements.lock
	@found=; for python in $(if $(PYTHON),"$(PYTHON)",python3 python3.14 python3.13 python3.12 python3.11); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        found="$$python"; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "missing: Python 3.11 or newer; install it, or name yours: make PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	"$$found" .ci/preflight.py || exit 1; \
	$(PY) -m uv --version >/dev/null 2>&1 || { \
	    echo "making .venv with $$("$$found" --version)"; \
	    "$$found" -m venv --clear .venv && $(PY) -m pip install -q --disable-pip-version-check uv; }
	$(UV) cython setuptools -c requirements.lock
	$(UV) --compile-bytecode -r requirements.lock --no-build-isolation-package pydensecrf2
	$(UV) --no-deps -e .
	@printf '%s\n' "$(CURDIR)" > $(READY)
