# Everything happens in .venv, which `make setup` builds from $(PYTHON). A second make is instant:
# the files in $(STAMPS) remember what is done.
#
# PYTHON  the interpreter to build .venv from; has it a torch >= 2.11 already, that one is used
# TORCH   what to install otherwise; without a version pip would choose a build for GPUs
# PYTEST_ARGS  further options for pytest, e.g. make test PYTEST_ARGS="-k causal"

PYTHON ?= python3
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
# Tools that a machine without network may lack: their steps are then left out, with a message.
OFFLINE := $(STAMPS)/offline
SYSTEM_TORCH := $(STAMPS)/system-torch

CSRC := $(shell find csrc -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu')
NATIVE_TESTS := $(shell find tests -name '*.h' -o -name '*.cpp')
HAS_TORCH := import torch; v = torch.__version__.split(".")[:2]; assert [*map(int, v)] >= [2, 11]
# --system-site-packages does not reach the packages of a virtual environment, a .pth file does.
SITE_PACKAGES := import site; print(*site.getsitepackages(), sep="\n")
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
BUILD_TOOLS := "setuptools>=77" "ninja>=1.11"
EDITABLE := $(PIP) install --no-build-isolation

.DEFAULT_GOAL := help
.PHONY: help setup build demo data test test-fast lint format bench readme hub cuda gpu cuda-table
.PHONY: triton-table clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMPS)/build ## create .venv with torch and the tools, build and install the package

build: setup ## the same: build what has changed

demo: setup ## show this machine, check and time the kernels, draw pictures (2 minutes)
	@$(BIN)/fused-attention demo

# What tests compare models with; without a network these tests are skipped.
data: setup ## fetch weights and words, 175 MiB, checked by SHA-256
	-$(BIN)/fused-attention fetch minilm smollm2 cmudict g2p-en

# Tests run side by side, so each keeps to one thread unless it asks for more.
WORKERS = $$($(BIN)/python -c 'import xdist' 2>/dev/null && echo "-n auto")
test: setup lint data ## linters and all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

test-fast: setup ## the tests that take less than a few seconds each
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

# $(call if-installed,PROGRAM,COMMAND): a tool may be missing only where pip could not fetch it.
if-installed = @if [ -e $(OFFLINE) ] && [ ! -x $(BIN)/$(1) ] && ! command -v $(1) >/dev/null; \
	then echo "skipped, $(1) is not installed: $(2)"; \
	else echo "$(2)"; PATH="$(CURDIR)/$(BIN):$$PATH" $(2); fi

lint: setup ## ruff, mypy and clang-format, changing nothing
	$(call if-installed,ruff,ruff check .)
	$(call if-installed,ruff,ruff format --check .)
	$(call if-installed,mypy,mypy)
	$(call if-installed,clang-format,clang-format --dry-run -Werror $(CSRC) $(NATIVE_TESTS))

format: setup ## let ruff and clang-format rewrite the sources
	$(call if-installed,ruff,ruff check --fix .)
	$(call if-installed,ruff,ruff format .)
	$(call if-installed,clang-format,clang-format -i $(CSRC) $(NATIVE_TESTS))

# The stored results are named after what they are: make bench SET=cpu NAME=some-machine
SET ?= cpu
NAME ?= $(SET)
THREADS ?=
bench: setup ## run a benchmark set and store its results for README's table
	$(BIN)/fused-attention bench --set $(SET) --seconds 2 $(if $(THREADS),--threads $(THREADS)) \
		--json benchmarks/results/$(NAME).json
	@echo "make readme puts them into README.md"

readme: setup ## rewrite the support matrix and the measured table of README.md
	$(BIN)/python -m fused_attention.cli.matrix --write README.md
	$(BIN)/python -m fused_attention.benchmarks.table --write README.md

# It can be loaded from there, or uploaded: docs/kernels_hub.md
HUB ?= build/hub
hub: setup ## lay the package out in build/hub as a kernel of the Hugging Face hub
	$(BIN)/python -m fused_attention.integrations.kernels_hub $(HUB)

# Needs nvcc, but no GPU. The libraries go into this tree, and as a wheel into the folder CARRY, by
# which `make gpu` finds them on a machine that cannot build.
CUDA_ARCHS ?= 80;90
CARRY ?= build/carry
CARRY_PYTHON ?= 3.12
BUILD_CUDA := FUSED_ATTENTION_CUDA=1 FUSED_ATTENTION_CUDA_ARCHS="$(CUDA_ARCHS)"
cuda: setup ## build the kernels for GPUs too, and a wheel to carry to a machine with a GPU
	$(BUILD_CUDA) $(BIN)/python setup.py -q build_ext --inplace
	@rm -f "$(CARRY)"/fused_attention-*.whl
	$(BUILD_CUDA) $(PIP) wheel --no-deps --no-build-isolation --wheel-dir "$(CARRY)" .
	@PYTHONPATH=tests $(BIN)/python -m gpu_run --prepare $(CARRY_PYTHON) --carry "$(CARRY)"

# On a machine with a GPU, with or without network; `make gpu DRY_RUN=1` shows the plan anywhere.
SECONDS ?= 480
OUT ?= gpu-report
gpu: ## everything that needs a GPU, in at most SECONDS=480; JSON and logs in OUT=gpu-report
	@PYTHONPATH=tests $(PYTHON) -m gpu_run --seconds $(SECONDS) --out "$(OUT)" \
		--carry "$(CARRY)" $(if $(DRY_RUN),--dry-run)

cuda-table: setup ## registers, shared memory and occupancy of the kernels; WRITE=1 pins registers
	@PYTHONPATH=tests $(BIN)/python -m cuda.static_table $(if $(WRITE),--write)

triton-table: setup ## what Triton's kernels cost on sm_80 and sm_90; WRITE=1 pins registers
	@PYTHONPATH=tests $(BIN)/python -m triton_compiled.static_table $(if $(WRITE),--write)

clean: ## remove everything that was built, .venv too
	rm -rf $(VENV) build python/fused_attention/lib/*.so *.egg-info python/*.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks fused-attention-demo gpu-report
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# .venv, torch and what a build needs. Where $(PYTHON) has a fitting torch, .venv sees its packages.
$(STAMPS)/base:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) must be Python 3.10 or newer: make setup PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "$(PYTHON) cannot make virtual environments (on Debian: apt install python3-venv)"; \
		exit 1; }
	@command -v c++ >/dev/null || [ -n "$$CXX" ] || \
		{ echo "no C++ compiler was found (on Debian: apt install g++), or set CXX"; exit 1; }
	rm -rf $(VENV)
	@if $(PYTHON) -c '$(HAS_TORCH)' 2>/dev/null; then \
		echo "creating $(VENV), which uses the torch of $(PYTHON)"; \
		$(PYTHON) -m venv --system-site-packages $(VENV) && mkdir -p $(STAMPS) && \
		$(PYTHON) -c '$(SITE_PACKAGES)' > $$(echo $(VENV)/lib/python3*/site-packages)/base.pth && \
		{ $(PIP) uninstall --yes setuptools; touch $(SYSTEM_TORCH); }; \
	else \
		echo "creating $(VENV) and installing $(TORCH) (some minutes)"; \
		$(PYTHON) -m venv $(VENV) && mkdir -p $(STAMPS) && $(PIP) install "$(TORCH)" numpy; \
	fi
	@touch $@

# Tools and the package. With a torch of its own a machine needs no network: what cannot be fetched
# is left out.
$(STAMPS)/tools: $(STAMPS)/base pyproject.toml setup.py
	@echo "installing the tools, building and installing the package"
	@rm -f $(OFFLINE)
	@{ $(PIP) install $(BUILD_TOOLS) && $(EDITABLE) -e ".[cli,test,dev]"; } || \
		{ [ -e $(SYSTEM_TORCH) ] && touch $(OFFLINE) && \
		echo "not all tools could be fetched; going on with those that are there" && \
		$(EDITABLE) --no-deps -e .; } || \
		{ echo 'the build needs $(BUILD_TOOLS) and a working C++ compiler, see above'; exit 1; }
	@touch $@ $(STAMPS)/build

# After a fresh $(STAMPS)/tools there is nothing left to do.
$(STAMPS)/build: $(STAMPS)/tools $(CSRC)
	@if [ ! -e $@ ] || [ -n "$$(find $(CSRC) $(STAMPS)/tools -newer $@)" ]; then \
		echo "building the package" && $(EDITABLE) --no-deps -e .; fi
	@touch $@
