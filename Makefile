# Every target first sets up its virtual environment, .venv, with the package in it.
# `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PIN ?=

ifeq ($(strip $(VENV)),)
RUN := $(PYTHON)
READY :=
else
RUN := $(VENV)/bin/python
READY := $(VENV)/.installed
# pip would compile on one core, and packages' own tests too; without compiled files, each process would compile anew.
# Files for other versions of Python do not compile, which is no error.
$(READY): pyproject.toml
	@echo "setting up $(VENV): with PyTorch's CUDA libraries it takes about 6.5 GB"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --no-compile -e '.[dev]' $(PIN)
	@$(RUN) -m compileall -qq -j 0 -x '/tests?/' \
	  $$($(RUN) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || true
	@touch $@
endif

.DEFAULT_GOAL := help
.PHONY: help train test test-versions golden check docs links wheel bench gpu

help:  ## show this list
	@sed -nE 's/^([a-z-]+): .*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22
	@printf '%s\n' '' \
	  '  ARGS="..."        more arguments, e.g. make train ARGS="--epochs 3"' \
	  '  PYTHON=python3.12 the interpreter that makes .venv' \
	  '  VENV=             use your own environment (say conda with a CUDA build of PyTorch) as it is;' \
	  "                    once before: pip install -e '.[dev]'"

train: $(READY)  ## train a spiking CNN on the bundled images, one to three minutes on two cores
	$(RUN) recipes/quickstart.py $(ARGS)

# As many processes as cores (at most 8), one thread each; a file stays in one process; the longest files come first.
test: $(READY)  ## run the tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder $(ARGS)

# The oldest and the newest supported pair, and one between; Triton 3.6 interprets kernels only with NumPy before 2.3.
test-versions:  ## run the tests with PyTorch 2.11, 2.13 and 2.15, in environments of their own (20 GB)
	@status=0; \
	$(MAKE) test VENV=.venv-torch-2.15 PIN='torch==2.15.0 triton==3.9.0' || status=1; \
	$(MAKE) test VENV=.venv-torch-2.13 PIN='torch==2.13.0 triton==3.9.0' || status=1; \
	$(MAKE) test VENV=.venv-torch-2.11 PIN='torch==2.11.0 triton==3.6.0 numpy==2.2.6' || status=1; \
	exit $$status

# The instruction sets of the recorded values, so that bits are compared on wider processors, too.
golden: $(READY)  ## compare values with the recorded ones, bit by bit on x86; ARGS="--write" records them
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 OPENBLAS_CORETYPE=Zen OMP_NUM_THREADS=1 $(RUN) -m tests.golden $(ARGS)

check: $(READY)  ## lint, formatting, ceilings on lines of Python, types
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m tests.lines
	$(RUN) -m pyright --pythonpath "$$($(RUN) -c 'import sys; print(sys.executable)')"

docs: $(READY)  ## build the documentation site into docs/_build; runs its notebooks, any warning fails
	OMP_NUM_THREADS=1 $(RUN) -m sphinx -E -W --keep-going -q $(ARGS) docs docs/_build/html
	@echo "written: docs/_build/html/index.html"

links: $(READY)  ## check the site's links to other sites; needs the internet
	$(RUN) -m sphinx -E -b linkcheck -D nb_execution_mode=off -q $(ARGS) docs docs/_build/links

wheel: $(READY)  ## build the wheel into dist; REPOSITORY=https://HOST/OWNER/NAME is where links of its page lead
	$(RUN) docs/wheel.py $(REPOSITORY)

bench: $(READY)  ## time a training step on the CPU
	$(RUN) bench/train_step.py --device cpu $(ARGS)

gpu: $(READY)  ## on a GPU: smoke, tests, benchmarks; in stages that can be resumed
	$(RUN) bench/gpu.py $(ARGS)
