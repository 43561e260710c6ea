# What a reader needs: `make run`, `make test`, `make lab`. Everything stays in .venv/, runs/ and cache/.
PYTHON ?= python3
DEVICE ?= cpu
PROFILE ?= default
JOBS ?= 1
HOST ?= 127.0.0.1
PORT ?= 8866

BIN := .venv/bin
INSTALLED := .venv/.installed
SOURCES := $(wildcard lib tests notebooks benchmarks docs)
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
APP := notebooks/app/app.ipynb
LIBRARY := $(shell find lib -name '*.py')
# What papermill and widgets leave in a notebook, beside its outputs.
STRIP := metadata.papermill cell.metadata.papermill metadata.widgets

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.PHONY: help install run notebooks book test lint lab app bench gpu overview clean

help:
	@echo "make install    everything into .venv/, once      make run    motion segmentation, end to end, in runs/"
	@echo "make notebooks  the same for every notebook      make book   one offline site of them in runs/book/"
	@echo "make lab        JupyterLab                       make app    a page to drop videos on, on this machine"
	@echo "make test       the whole test suite             make lint   ruff, mypy, nbstripout"
	@echo "make bench      the benchmarks                   make overview   the picture of the README"
	@echo "make gpu        what a GPU is judged by: tests, notebooks in full, speed; one page, runs/gpu/index.html"
	@echo "make clean      remove what was made, but for .venv/"
	@echo "Options: PYTHON=python3.12 DEVICE=cuda PROFILE=smoke|default|full JOBS=2 HOST=0.0.0.0 PORT=8866"

# The stamp is written last: an interrupted installation is taken up again, a finished one is not repeated.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "diffslic needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); name another: make run PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into .venv/ (once, some minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev,lab]"
# airsim names a dependency that breaks JupyterLab's tornado: it comes without its dependencies, and builds with ours.
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt numpy setuptools wheel rpc-msgpack
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation airsim==1.8.1
	@touch $@

install: $(INSTALLED)

run: $(INSTALLED)
	@$(BIN)/diffslic notebooks --only motion_segmentation --device $(DEVICE) --profile $(PROFILE)

notebooks: $(INSTALLED)
	@$(BIN)/diffslic notebooks --keep-going --jobs $(JOBS) --device $(DEVICE) --profile $(PROFILE)

# A notebook is run again for the book only where it, or the library, changed since.
runs/%.ipynb: notebooks/%.ipynb $(LIBRARY) | $(INSTALLED)
	@$(BIN)/diffslic notebooks --only $* --device $(DEVICE) --profile $(PROFILE)

book: $(INSTALLED) $(NOTEBOOKS:notebooks/%=runs/%)
	@$(BIN)/diffslic book

# Two workers, one thread each: torch and BLAS would each start as many threads as there are cores.
test: $(INSTALLED)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(INSTALLED)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/nbstripout --verify --extra-keys "$(STRIP)" $(NOTEBOOKS) $(APP)

lab: $(INSTALLED)
	@$(BIN)/jupyter lab --notebook-dir notebooks

# Whoever closes the page is forgotten some minutes later, and the files that came with it are removed.
app: $(INSTALLED)
	@$(BIN)/voila $(APP) --no-browser --port=$(PORT) --Voila.ip=$(HOST) \
	    --MappingKernelManager.cull_interval=10 --MappingKernelManager.cull_idle_timeout=300

# Hours of training are not among them: benchmarks/end_to_end.py is called by hand.
bench: $(INSTALLED)
	@if [ -z "$$DIFFSLIC_REFERENCE" ] && [ -d ../shared ]; then export DIFFSLIC_REFERENCE=$$(cd ../shared && pwd); fi; \
	for file in $(filter-out benchmarks/end_to_end.py,$(wildcard benchmarks/*.py)); do \
	    $(BIN)/python $$file || exit 1; done

# Without a GPU: make gpu DEVICE=cpu PROFILE=smoke tries the run itself.
gpu: DEVICE = cuda
gpu: PROFILE = full
gpu: $(INSTALLED)
	@$(BIN)/diffslic regression --device $(DEVICE) --profile $(PROFILE) --out runs/gpu

# The picture of the README.
overview: $(INSTALLED)
	@$(BIN)/python docs/overview.py notebooks/overview.png

clean:
	@rm -rf runs cache notebooks/runs notebooks/cache .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
	@find lib tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
