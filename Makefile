# Everything runs in a virtual environment that `make setup` makes; nothing else is touched.
#
# Settings, for example `make setup PYTHON=python3.11 TORCH=2.12.0`:
#   PYTHON       interpreter the environment is made with
#   VENV         the environment's folder
#   TORCH        version or requirement of torch
#   TORCHVISION  version or requirement of torchvision; without it, the one that fits torch
#   MMCV_DEVICE  cpu: compile onedl-mmcv without CUDA even where a GPU is
#   TEST_JOBS    processes that run test files side by side, a thread each (one a core)
#   PYTEST_ARGS  more arguments for pytest, for example PYTEST_ARGS='-k setup -x';
#                PYTEST_ARGS="-m 'not slow'" is the quick round
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) are respected.

PYTHON ?= python3
VENV ?= .venv
TORCH ?=
TORCHVISION ?=
MMCV_DEVICE ?= auto
TEST_JOBS ?= auto
PYTEST_ARGS ?=

VENV_PYTHON = $(VENV)/bin/python
PYTEST = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(VENV_PYTHON) -m pytest -n $(TEST_JOBS) \
    --dist loadfile --no-loadscope-reorder
DEMO_DIR = work_dirs/demo
DEMOS = retinanet_digits_w4a8 mask_rcnn_digits_w4a8

.DEFAULT_GOAL := help
.PHONY: help setup check-machine data demo test coverage lint docs clean clean-venv

help: ## list the targets
	@echo 'usage: make TARGET [PYTHON=python3.11] [TORCH=2.13.0] ...'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: ## make the virtual environment with everything in it
	@$(PYTHON) tools/setup/setup_env.py --venv '$(VENV)' --torch '$(TORCH)' \
	    --torchvision '$(TORCHVISION)' --mmcv-device '$(MMCV_DEVICE)'

check-machine: ## say what the machine lacks for the set-up, install nothing
	@$(PYTHON) tools/setup/setup_env.py --venv '$(VENV)' --check

data: setup ## make the demo data set
	$(VENV_PYTHON) tools/make_demo_data.py

demo: data ## quantize a detector and an instance segmenter, compare with float
	@set -e; for name in $(DEMOS); do \
	    echo "== $$name"; \
	    $(VENV_PYTHON) tools/quantize.py configs/demo/$$name.py --work-dir $(DEMO_DIR)/$$name; \
	done
	$(VENV_PYTHON) tools/demo_summary.py $(addprefix $(DEMO_DIR)/,$(DEMOS))

# What depends on how a processor multiplies bytes runs a second time as on one without VNNI: the
# sums, and with them what several processes add up of inputs of all kinds. (What a runtime computes
# there is in the tests themselves, tests/test_export/test_onnx/test_saturation.py.)
WITHOUT_VNNI = tests/test_functional/test_exact_sums.py tests/test_solving/test_statistics.py \
    tests/test_passes/test_team.py
BY_SUMS = sums or products or several_processes and (W4A8 or W3A3 or asymmetric or groups)

test: data ## run the tests: all, or what PYTEST_ARGS chooses (-m 'not slow' for a quick round)
	$(if $(PYTEST_ARGS),,ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) $(WITHOUT_VNNI) \
	    -k '$(BY_SUMS)')
	$(PYTEST) tests $(PYTEST_ARGS)

# Not part of `test`: watching every line makes tests of calibrations take half as long again. Only
# what runs in pytest's own processes counts; the tools' and spawned processes do not.
coverage: data ## run the tests, print how much of each file they run
	$(PYTEST) tests --cov=mmbitsplit --cov-report=term:skip-covered $(PYTEST_ARGS)

lint: setup ## check the style with ruff, the types with mypy
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m mypy

docs: setup ## build the documentation into docs/_build/html; a warning is an error
	$(VENV_PYTHON) docs/make_llms.py
	$(VENV_PYTHON) -m sphinx -W --keep-going -b html docs docs/_build/html

clean: ## remove caches, build products and what the demo wrote
	rm -rf build dist docs/_build *.egg-info .coverage .pytest_cache .ruff_cache .mypy_cache $(DEMO_DIR)
	find . -path './$(VENV)' -prune -o -type d -name __pycache__ -print | xargs -r rm -rf

clean-venv: ## remove the virtual environment
	rm -rf '$(VENV)'
