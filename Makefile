# The whole development loop. `make` lists the targets.
#
#   make demo STUDY=path/to/folder    with your own DICOM files
#   make test ARGS="-k export -x"     more arguments for pytest
#   make setup PYTHON=python3.12      another interpreter (Python 3.11 or newer)
#   make lock UPGRADE=1               newer versions of the dependencies

PYTHON ?= python3

# A process that may not keep its bytecode compiles everything at each start.
unexport PYTHONDONTWRITEBYTECODE

BIN    := .venv/bin

# A virtual environment knows its own path and its interpreter: in a tree that was moved or copied, or
# where that Python has gone, it is made anew.
RUN_STAMP := .venv/.set-up
DEV_STAMP := .venv/.set-up-dev
NEW_ENOUGH := import sys; assert sys.version_info >= (3, 11)
usable := $(shell grep -qsF "$(CURDIR)/$(BIN)/python" $(BIN)/pip \
	&& $(BIN)/python -c '$(NEW_ENOUGH)' 2>/dev/null && echo yes)

PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: help
help:  ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

.PHONY: setup
setup: $(RUN_STAMP)  ## make .venv with the locked run-time dependencies

.PHONY: demo
demo: $(RUN_STAMP)  ## run all stages once on real DICOM files (STUDY=folder: on yours)
	@$(BIN)/dicom-adapter demo $(if $(STUDY),--study "$(STUDY)")

.PHONY: up
up: $(RUN_STAMP)  ## run everything on this machine until Ctrl-C
	@exec $(BIN)/dicom-adapter up

.PHONY: test
test: $(DEV_STAMP) test-peers  ## run the tests
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

.PHONY: test-peers
test-peers: $(DEV_STAMP)  ## install the programs that tests talk to, where that is possible
	@$(BIN)/python -m tests.peers

.PHONY: bench
bench: $(DEV_STAMP)  ## measure the receiver against others (ARGS=--smoke: only see that it works)
	@$(BIN)/python -m benchmarks.run $(ARGS)

.PHONY: compose-secrets
compose-secrets:  ## make the passwords of docker-compose.yml in docker/secrets, each once
	@sh docker/make-secrets.sh

.PHONY: compose-e2e
compose-e2e: $(DEV_STAMP)  ## run docker-compose.yml for real, and kill what it can (needs Docker)
	@tests/compose_e2e.sh

.PHONY: bench-road
bench-road:
	@echo "make bench-road is now make bench-stages" >&2; exit 2

.PHONY: bench-stages
bench-stages: $(DEV_STAMP) test-peers  ## measure all stages end to end with 1, 2 and 4 workers for each stage
	@$(BIN)/python -m benchmarks.stages $(ARGS)

.PHONY: soak
soak: $(DEV_STAMP) test-peers  ## kill receivers, and the roles of two hosts, under load: some 560 deaths in ten minutes
	@SOAK=1 $(BIN)/python -m pytest tests/test_scp_kills.py tests/cluster --timeout 7200 $(ARGS)

.PHONY: screenshots
screenshots: $(DEV_STAMP) test-peers  ## take the pictures of the docs anew, from a demo in a real browser
	@SCREENSHOTS=1 $(BIN)/python -m pytest tests/test_flower.py

.PHONY: lint
lint: $(DEV_STAMP)  ## check style, types and import contracts
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: $(DEV_STAMP)  ## format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix-only
	@$(BIN)/ruff format

.PHONY: docs
docs: $(DEV_STAMP)  ## write anew what docs and chart take from settings and values
	@$(BIN)/python docs/render_configuration.py
	@$(BIN)/python helm/render.py

LOCK := $(BIN)/uv pip compile --no-config --quiet --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --annotation-style line \
	--custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

.PHONY: lock
lock: $(DEV_STAMP)  ## write requirements*.txt anew from pyproject.toml
	@$(LOCK) pyproject.toml --group build -o requirements.txt
	@$(LOCK) pyproject.toml --group build --group dev -c requirements.txt -o requirements-dev.txt

.PHONY: clean
clean:  ## remove .venv, caches and build products (never ./data)
	rm -rf .venv dist build .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find adapter workers tests celeryconfig.py -name __pycache__ -prune -exec rm -rf {} +

# --- set-up ---------------------------------------------------------------------------------------

$(RUN_STAMP): requirements.txt pyproject.toml .venv/pyvenv.cfg
	@echo "Installing the locked dependencies into .venv ..."
	@$(PIP) --require-hashes --requirement requirements.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV_STAMP): requirements-dev.txt pyproject.toml .venv/pyvenv.cfg
	@echo "Installing the locked dependencies, those of development too, into .venv ..."
	@$(PIP) --require-hashes --requirement requirements-dev.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $(RUN_STAMP) $@

.venv/pyvenv.cfg: $(if $(usable),,always)
	@$(PYTHON) -c '$(NEW_ENOUGH)' 2>/dev/null || { \
		echo "dicom-adapter needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1)"; \
		echo "With another interpreter: make $(MAKECMDGOALS) PYTHON=python3.12"; \
		exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) comes without venv. On Debian or Ubuntu: apt-get install python3-venv"; \
		exit 1; } >&2
	@$(PYTHON) -m venv --clear .venv

.PHONY: always
always:
