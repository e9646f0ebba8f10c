# `make help` lists what there is. Everything runs in .venv, which `make setup` builds.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# The Python that .venv is built from: the first of these that is 3.10 to 3.12 and can make environments.
SUITS := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	"$$p" -c '$(SUITS)' 2>/dev/null && { echo "$$p"; break; }; done)

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.setup-done

# An environment whose interpreter is gone (a removed Python, a copied folder) counts as not built.
ifneq ($(wildcard $(STAMP)),)
ifneq ($(shell $(RUN) -c 'print("works")' 2>/dev/null),works)
.PHONY: $(STAMP)
endif
endif

.PHONY: help setup demo app label test lint format clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## build .venv, again only when pyproject.toml or constraints.txt changed

define check-python
@if [ -z '$(PYTHON)' ] || ! $(PYTHON) -c '$(SUITS)' 2>/dev/null; then \
		echo "make $(or $(MAKECMDGOALS),setup): expected Python 3.10, 3.11 or 3.12 with venv, got $$({ $(or $(PYTHON),python3) -V || echo none; } 2>&1 | tail -n 1)." \
			"Install one (Debian, Ubuntu: python3.11 python3.11-venv) or name it: make PYTHON=/path/to/python3.11 setup" >&2; \
		exit 1; \
	fi
endef

# The stamp comes last and carries the time of the start: a setup that was cut off, or overtaken by an edit, is done again.
$(STAMP): pyproject.toml constraints.txt
	$(check-python)
	@echo 'building $(VENV) with $(PYTHON): some minutes'
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	touch $(VENV)/.setup-started
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[compare,demo,app,test]'
	mv $(VENV)/.setup-started $@

demo: setup ## sharpen a sample scan with the shipped weights; results in demo/
	$(RUN) -m custom_components.demo

app: setup ## a page in the browser on 127.0.0.1: choose a bundle, drop a scan, compare, download
	$(RUN) -m custom_components.app

# MONAI Label has an environment of its own. monailabel and pydicom-seg ask for numpy < 2, which they do not need for what is
# used here: they come without their dependencies, which the extra `label` names.
LABEL_VENV := .venv-label
LABEL_STAMP := $(LABEL_VENV)/.setup-done
PORT ?= 8000

label: $(LABEL_STAMP) ## serve the bundles by MONAI Label: make label STUDIES=folder PORT=8000
	$(LABEL_VENV)/bin/python -m custom_components.label --port $(PORT) $(if $(STUDIES),--studies '$(STUDIES)')

$(LABEL_STAMP): pyproject.toml constraints.txt constraints-label.txt
	$(check-python)
	@echo 'building $(LABEL_VENV) with $(PYTHON): some minutes'
	rm -rf $(LABEL_VENV)
	$(PYTHON) -m venv $(LABEL_VENV)
	touch $(LABEL_VENV)/.setup-started
	$(LABEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-label.txt --editable '.[label]'
	$(LABEL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-label.txt --no-deps monailabel pydicom-seg
	mv $(LABEL_VENV)/.setup-started $@

# Threads that spin while they wait make small tests up to a hundred times slower on a machine that has other work.
test: export OMP_WAIT_POLICY ?= PASSIVE
test: setup $(LABEL_STAMP) ## run all tests, on all cores
	$(RUN) -m pytest -q -n auto --dist worksteal

lint: setup ## ruff, format and types, changing nothing
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

format: setup ## let ruff put imports and format right
	$(RUN) -m ruff check --fix-only
	$(RUN) -m ruff format

clean: ## remove .venv, .venv-label and what the tools left
	rm -rf $(VENV) $(LABEL_VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
