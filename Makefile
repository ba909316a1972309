# Two commands do everything: `make demo` and `make test`. Needs git, make and Python 3.11, 3.12 or 3.13.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The project is built with what the lock installed just before.
.NOTPARALLEL:
.PHONY: help demo install install-dev test faults fuzz soak check test-peers lock docs hooks statement conformance conformance-viewer

# The locks install wheels only, and not every package has one for a newer Python yet.
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$python && break; done)
endif

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Every file is held to a hash of the locks. Wheels first; then what is published as source only, built with the
# build tools and the PyTorch just installed: nothing that a build needs is downloaded outside the locks.
WHEELS := $(PIP) install --quiet --require-hashes --no-deps --only-binary :all:
SDISTS := SAM2_BUILD_CUDA=0 $(PIP) install --quiet --require-hashes --no-deps --no-build-isolation --use-pep517
# Stamps: what stands in one of them is not installed again.
MADE := $(VENV)/.made
RUN := $(VENV)/.requirements
DEV := $(VENV)/.requirements-dev
PROJECT := $(VENV)/.project

help:  ## Show this list
	@grep -E '^[a-z-]+:.*  ## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*  ## /  make \1\t/' | expand -t 20
	@echo "  make demo ARGS='--ct DIR'   runs it on your own CT series"

demo: install  ## Install, then the main job: CT in by C-STORE, SEG and SR back (no GPU, no Docker)
	$(BIN)/pacs-node demo $(ARGS)

install: $(RUN) $(PROJECT)  ## Install what the node needs into .venv

install-dev: $(DEV) $(PROJECT)  ## Install what the tests need into .venv

test: install-dev  ## Install, then ruff, mypy and the whole test suite
	$(MAKE) --no-print-directory check
	# a file stays in one process: its fixtures start whole nodes
	# one thread each: processes with a thread for each core wait for each other
	# in the order of their names: the long ones of tests/acceptance come first, and no process ends alone with them
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

faults: install-dev  ## Run the long forms of the attacks and faults in docs/reliability.md
	PACS_NODE_FAULTS=long PACS_NODE_REQUIRE_PEERS=1 $(BIN)/python -m pytest tests/faults --log-cli-level=INFO $(ARGS)

fuzz: install-dev  ## Fuzz what reads the bytes of strangers, an hour or ARGS='--seconds 60 --decoders 1000'
	$(BIN)/python -m tests.fuzz $(ARGS)

SOAK_SECONDS := 1800
soak: install-dev  ## Half an hour of kills, stops, cuts and a full disk on a whole node (SOAK_SECONDS=600 for less)
	PACS_NODE_SOAK_SECONDS=$(SOAK_SECONDS) PACS_NODE_REQUIRE_PEERS=1 $(BIN)/python -m pytest tests/faults/test_soak.py --log-cli-level=INFO $(ARGS)

check: install-dev  ## Only ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-peers:  ## Install the Debian packages that the tests talk to (as root or by sudo)
	.ci/test-peers

lock:  ## Write the lock files anew (needs uv)
	.ci/lock

docs: install-dev  ## Write docs/configuration.md from the declarations of the settings
	$(BIN)/python -m pacs_node.config_docs > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md

statement: install-dev  ## Write conformance/statement.md from conformance/claims.toml
	$(BIN)/python -m conformance.statement

conformance: install-dev  ## Results of every kind through nine public validators (needs make test-peers)
	$(BIN)/python -m conformance.check $(ARGS)

conformance-viewer: install-dev  ## Results in the OHIF viewer, looked at in headless Chromium (needs make test-peers)
	$(BIN)/python -m conformance.viewer $(ARGS)

hooks: install-dev  ## Let git run ruff and mypy before each commit
	$(BIN)/pre-commit install

$(MADE):
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 on PATH; name one: make PYTHON=/path/to/python3 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	echo "$(PYTHON) can't make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(RUN): requirements.lock requirements-sdist.lock $(MADE)
	@echo "installing requirements.lock into $(VENV) (PyTorch with its GPU libraries: about 6 GB, some minutes)"
	$(WHEELS) -r requirements.lock
	$(SDISTS) -r requirements-sdist.lock
	@touch $@

$(DEV): requirements-dev.lock requirements-sdist.lock $(MADE)
	@echo "installing requirements-dev.lock into $(VENV) (PyTorch with its GPU libraries: about 6 GB, some minutes)"
	$(WHEELS) -r requirements-dev.lock
	$(SDISTS) -r requirements-sdist.lock
	@touch $@

# The build backend stands in the locks, so the project itself is built from what is installed already.
$(PROJECT): pyproject.toml | $(MADE)
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	$(PIP) check
	@touch $@
