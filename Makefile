# Needs Python 3.11 or 3.12, git and make; everything else is installed into $(VENV).
#   make install   the locked environment and this project
#   make run       FedAvg against FedProx on Synthetic(1,1) at 90% stragglers, with a figure
#   make test      lint, types and the whole test suite
#   make lint      ruff, mypy, import-linter, codespell and the docs alone
#   make docs      the documentation as a site, in site/
#   make lock      after a change of the dependencies: poetry.lock and requirements.txt

VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for python in python3.12 python3.11 python3 python; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$python && break; done)
# MNIST for the tests; where there is none, the tests that need it skip and say so.
export FEDPROX_DATA_DIR ?= $(abspath $(firstword $(wildcard ../shared/data) data))

.PHONY: install run test lint docs lock environment

install:
	@cmp -s requirements.txt $(VENV)/installed.txt || $(MAKE) --no-print-directory environment
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .

# installed.txt is written last: an environment without it is half-made and is never reused.
environment:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or 3.12 found; install one or call make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@echo "setting up $(VENV) with $(PYTHON): about 6 GB, a few minutes the first time"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --quiet --requirement requirements.txt
	@cp requirements.txt $(VENV)/installed.txt

# Three jobs at once, one thread each; then the figure and the three final results.
FIRST := experiment=paper_synthetic_1_1 engine=local engine.num_threads=1
run: install
	@rm -rf runs/first
	@export OMP_NUM_THREADS=1; \
	 $(BIN)/python -m fedprox.main --config-name fedavg $(FIRST) hydra.run.dir=runs/first/fedavg & fedavg=$$!; \
	 $(BIN)/python -m fedprox.main $(FIRST) mu=0 hydra.run.dir=runs/first/fedprox_mu_0 & mu_0=$$!; \
	 $(BIN)/python -m fedprox.main $(FIRST) mu=1 hydra.run.dir=runs/first/fedprox_mu_1 & mu_1=$$!; \
	 wait $$fedavg && wait $$mu_0 && wait $$mu_1
	@$(BIN)/python -m fedprox.report runs/first --out runs/first/figure.png

# A worker that dies ends the suite: xdist, which would start another, waits for ever for tests of its file.
test: lint
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/codespell
	@$(BIN)/nbstripout --keep-id --verify notebooks/*.ipynb
	@$(MKDOCS)

# The page of settings is written first; the theme's notice about MkDocs 2 is not about this version.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
docs: install
	@$(BIN)/python -m fedprox.config.documentation docs/configuration.md
	@$(MKDOCS)
	@echo "site/index.html"

# Poetry and its export plugin live in an environment of their own (poetry.lock, then the same lock for pip).
lock:
	poetry lock
	poetry export --with dev,docs --all-extras --output requirements.txt
