# make demo: the whole lifecycle on a small model, from an empty machine.   make test: everything that must hold.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RECIPE := deployments/recipes/demo.toml

.PHONY: demo test slow qlora check install services clean
.DEFAULT_GOAL := demo

demo: services
	$(BIN)/rlhf run $(RECIPE)

test: install
	$(BIN)/pytest

slow: install
	$(BIN)/pytest -m slow

# QLoRA's tests, with bitsandbytes beside the environment and not in it
qlora: install
	@test -d $(VENV)/qlora/bitsandbytes || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt --target $(VENV)/qlora bitsandbytes
	PYTHONPATH=$(VENV)/qlora $(BIN)/pytest tests/test_quantised.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

install: $(INSTALLED)

services: install
	$(BIN)/rlhf up

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 11) <= v < (3, 14) else f"Python 3.11 to 3.13 is needed, this is {v.major}.{v.minor}; run: make PYTHON=python3.11")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies into $(VENV) (about 2 minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --progress-bar on -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
