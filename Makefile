# Every target first sets up what it needs: a virtual environment in .venv that holds the package.
# `make help` says what there is.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

ifeq ($(strip $(VENV)),)
RUN := $(PYTHON)
READY :=
else
RUN := $(VENV)/bin/python
READY := $(VENV)/.installed
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -e '.[dev]'
	@touch $@
endif

.DEFAULT_GOAL := help
.PHONY: help train test check bench gpu

help:  ## show this list
	@sed -nE 's/^([a-z-]+): .*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18
	@printf '%s\n' '' \
	  '  ARGS="..."        more arguments, e.g. make train ARGS="--epochs 3"' \
	  '  PYTHON=python3.12 the interpreter that makes .venv' \
	  '  VENV=             use your own environment (say conda with a CUDA build of PyTorch) as it is;' \
	  "                    once before: pip install -e '.[dev]'"

train: $(READY)  ## train a spiking CNN on the bundled images, about two minutes
	$(RUN) recipes/quickstart.py $(ARGS)

test: $(READY)  ## run the tests
	$(RUN) -m pytest $(ARGS)

check: $(READY)  ## lint, formatting, types
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m pyright --pythonpath "$$($(RUN) -c 'import sys; print(sys.executable)')"

bench: $(READY)  ## time a training step on the CPU
	$(RUN) bench/train_step.py --device cpu $(ARGS)

gpu: $(READY)  ## on a GPU: test the kernels, tune them, run all benchmarks
	$(RUN) -m pytest tests/kernels $(ARGS)
	$(RUN) bench/kernels.py --tune --output kernels/ttfs_kernels/triton_backend/tuning
	$(RUN) bench/kernels.py
	$(RUN) bench/train_step.py --device cuda --batch-size 256
	$(RUN) bench/causal_set.py --device cuda
	$(RUN) bench/peers.py --device cuda --batch-size 128
