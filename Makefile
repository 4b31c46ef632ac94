# Everything runs from a fresh clone; the first target that needs it sets the environment up.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
# The newest Axolotl that this Python may have: 0.20 and later need 3.12. With each goes a torch that
# both take and whose PyPI wheel also comes as a CPU build; axolotl alone would pull the newest one
# with its CUDA packages.
AXOLOTL := $(shell $(PYTHON) -c 'import sys; print("0.19.0" if sys.version_info < (3, 12) else "0.21.0")')
TORCH := torch==2.13.0
# uv installs in a fraction of pip's time: it resolves once, downloads side by side and compiles
# nothing that is never imported. Where it cannot, pip does it. An editable install imports editables;
# uv reads what the project depends on from pyproject.toml and misses what the build adds.
PACKAGES = $(TORCH) axolotl==$(AXOLOTL) editables -e "$(1)"
define INSTALL
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(PACKAGES) \
	  || $(BIN)/pip install --quiet $(PACKAGES)
endef
# uv reads no pip.conf: it is told of the same folders of wheels and the same index, and is as patient.
PIP_CONFIG = $(shell $(PYTHON) -m pip config get $(1) 2> /dev/null)
ifndef UV_FIND_LINKS
export UV_FIND_LINKS := $(or $(PIP_FIND_LINKS),$(call PIP_CONFIG,global.find-links))
endif
ifndef UV_DEFAULT_INDEX
export UV_DEFAULT_INDEX := $(or $(PIP_INDEX_URL),$(call PIP_CONFIG,global.index-url))
endif
export UV_HTTP_TIMEOUT ?= 180
export HF_HUB_OFFLINE := 1
export AXOLOTL_DO_NOT_TRACK := 1
export TOKENIZERS_PARALLELISM := false
export TRL_EXPERIMENTAL_SILENCE := 1
CONFIG := example_configs/smollm2-cpu.yml
TRAIN := $(BIN)/accelerate launch --cpu --num_processes 1 -m axolotl.cli.train
RUN := $(BIN)/python demo/run.py

.PHONY: setup models demo demo-r1 test test-newest test-slow test-gpu benchmark-kernels lint clean
setup: .venv/.ready

.venv/.ready: .venv/.demo
	$(call INSTALL,.[dev])
	touch $@

.venv/.demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv
	$(call INSTALL,.[demo])
	touch $@

models: .cache/smollm2-cut5/config.json .cache/pydoc-chat/train.jsonl
.cache/smollm2-cut5/config.json: .venv/.demo demo/models.py
	$(RUN) "the teacher and the student" models $(BIN)/python demo/models.py

.cache/pydoc-chat/train.jsonl: demo/make_data.py | .venv/.demo
	$(BIN)/python -W ignore demo/make_data.py

demo: models
	rm -rf outputs/demo/student-* outputs/demo/prepared*
	$(RUN) "capturing the teacher" capture $(BIN)/axolotl distill capture $(CONFIG)
	$(RUN) "training by distillation" distilled $(TRAIN) $(CONFIG)
	$(RUN) "training by SFT, same rows and steps" sft $(TRAIN) example_configs/smollm2-cpu-sft.yml
	$(RUN) "evaluating on held-out rows" evaluate $(BIN)/python demo/evaluate.py .cache/smollm2 \
	  outputs/demo/evaluation.json teacher=.cache/smollm2 student=.cache/smollm2-cut5 \
	  sft=outputs/demo/student-sft distilled=outputs/demo/student-distilled
	@$(BIN)/python demo/report.py

R1 := example_configs/r1-recipe
demo-r1: models
	rm -rf outputs/r1
	$(BIN)/python $(R1)/make_prompts.py outputs/r1 --train 200 --held-out 100 --digits 1
	$(RUN) "the teacher solves each problem four times" r1/generate $(BIN)/python demo/r1.py generate
	$(RUN) "verifying and filtering" r1/filter $(BIN)/axolotl distill filter $(R1)/cpu/recipe.yml
	$(RUN) "capturing the teacher" r1/capture $(BIN)/axolotl distill capture $(R1)/cpu/train.yml
	$(RUN) "training on verified trajectories" r1/train $(TRAIN) $(R1)/cpu/train.yml
	@$(BIN)/python demo/r1.py unfiltered
	$(RUN) "the same without verifying: filter" r1/filter-all \
	  $(BIN)/axolotl distill filter outputs/r1/unfiltered/recipe.yml
	$(RUN) "the same without verifying: capture" r1/capture-all \
	  $(BIN)/axolotl distill capture outputs/r1/unfiltered/train.yml
	$(RUN) "the same without verifying: train" r1/train-all $(TRAIN) outputs/r1/unfiltered/train.yml
	$(RUN) "solving held-out problems" r1/accuracy $(BIN)/python demo/r1.py accuracy
	@$(BIN)/python demo/r1.py report

# A fast test takes two minutes at most, its fixtures counted, and machines differ. (pytest's faulthandler_timeout, which
# would end what no signal reaches, has every fork of a test wait for a watchdog that it does not have.)
FAST := --timeout 900 --durations 20 -n 2 --dist loadfile --no-loadscope-reorder
test: setup models
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" $(FAST)

# What touches Axolotl, on the newest one as well.
test-newest: .cache/newest/.ready models
	OMP_NUM_THREADS=1 .cache/newest/bin/python -m pytest -m "axolotl and not slow and not gpu" $(FAST)

# The packages that differ, over those of .venv. This Axolotl asks for Python 3.12 and runs on 3.11,
# where the tests can have a CPU build of torch; CONTRIBUTING.md says what that leaves untested.
.cache/newest/.ready: .venv/.ready
	$(PYTHON) -m venv --clear $(@D)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > \
	  "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/00_base.pth"
	$(@D)/bin/pip install --quiet --ignore-requires-python $(TORCH) axolotl==0.21.0 -e .
	touch $@

test-slow: setup models .cache/deepspeed
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: setup models
	$(BIN)/python -m pytest -m gpu

# For the test of ZeRO-3; without its compiled operators, which a CPU does not need.
.cache/deepspeed: .venv/.ready
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --no-deps --no-build-isolation --target $@ \
	  deepspeed==0.19.8 hjson py-cpuinfo msgpack ninja einops

# What the kernels are measured against, beside what Axolotl brings; apart, for trl is another one.
.cache/peers: .venv/.ready
	$(BIN)/pip install --quiet --no-deps --target $@ \
	  orda-kernel==0.1.0 cut-cross-entropy==25.1.1 trl==1.16.0

benchmark-kernels: models .cache/peers
	$(BIN)/python triton_kernels/benchmarks/compile_ahead.py
	$(BIN)/python triton_kernels/benchmarks/sweep.py
	$(BIN)/python triton_kernels/benchmarks/tile_sparsity.py

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

clean:
	rm -rf outputs last_run_prepared
