# The verbs people and CI share. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# uv does not read pip's configuration: a locally provided wheel (a CPU build of torch, say) is handed on.
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
# Bytecode is what makes thirty short-lived Python processes start in time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.complete: pyproject.toml constraints.txt
	@echo "building $(VENV) (once, about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[local,dev]'
	@touch $@

.PHONY: env
env: $(VENV)/.complete ## build .venv from constraints.txt
