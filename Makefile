# Everything a person or a machine does with this repository. `make help` lists it.

PYTHON ?= python3
HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=
SELF := $(MAKE)

.PHONY: help serve test test-slow latency soak lm-eval tool-check compat compat-clients compat-vision ray gpu gpu-bench gpu-kernels gpu-engine gpu-server gpu-soak test-oldest lint format docs clean

PURELIB = import sysconfig; print(sysconfig.get_path('purelib'))

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10
	@echo "Settings: PYTHON=$(PYTHON) HOST=$(HOST) PORT=$(PORT) ARGS='$(ARGS)'"

serve: .venv/.installed ## Install what is missing, then serve the default model
	@.venv/bin/headrace serve --host $(HOST) --port $(PORT) $(ARGS)

test: .venv/.installed-dev ## Run the tests but for the slow ones; ARGS='-k name' picks some
	@.venv/bin/python -m scripts.run_tests $(ARGS)

test-slow: .venv/.installed-dev ## Run the tests that need minutes: real weights, long walks, kernels at length
	@.venv/bin/python -m scripts.browser
	@.venv/bin/python -m scripts.run_tests --slow $(ARGS)

latency: .venv/.installed-dev ## Hold what one request costs another to its bounds, on a quiet machine
	@.venv/bin/python -m bench.latency $(ARGS)

soak: .venv/.installed-dev ## Let faults happen to a real server for ten minutes, then play what takes long: random engine operations, deaths of ranks, builds
	.venv/bin/python -m tests.chaos.play --seconds 600
	HEADRACE_SOAK=1 .venv/bin/python -m pytest -m soak -s $(ARGS)

lm-eval: .venv/.installed-dev ## Compare lm-evaluation-harness on this server and on transformers
	.venv/bin/python -m tests.lm_eval.check $(ARGS)

tool-check: .venv/.installed-dev ## Have a real model call tools and extract; WEIGHTS=FILE.gguf is Qwen2.5-Coder-1.5B-Instruct
	.venv/bin/python -m tests.tool_check.check $(WEIGHTS) $(ARGS)

compat-clients: .venv/.installed-dev ## Let LangChain, LiteLLM, openai-node and the Vercel AI SDK read our streams (needs npm)
	@test -d .clients/venv || $(PYTHON) -m venv .clients/venv
	.clients/venv/bin/pip install --quiet langchain-openai litellm
	npm install --silent --prefix .clients openai ai @ai-sdk/openai-compatible
	.venv/bin/python -m pytest tests/server/routes/clients $(ARGS)

compat: .venv/.installed-dev ## Run other people's conformance suites against this server, held to what is expected
	@.venv/bin/python -m tests.compat.check $(ARGS)

compat-vision: .venv/.installed-dev ## Hold models that see to the oldest transformers that is taken, which GPU machines may have
	@test -d .transformers/huggingface_hub || .venv/bin/pip install --quiet --no-deps --target .transformers "transformers==5.17.*" "huggingface_hub<2"
	PYTHONPATH=.transformers .venv/bin/python -m pytest -p no:cacheprovider -W ignore::FutureWarning tests/engine/test_oracle_vision.py tests/engine/test_oracle_images.py \
	  tests/engine/test_cross_attention.py tests/server/images $(ARGS)

ray: .venv/.installed-dev ## Play with replicas on Ray Serve: whole streams, affinity, deaths, scaling (fetches 500 MB)
	@test -d .venv-ray || $(PYTHON) -m venv .venv-ray
	@# It sees the packages of .venv behind its own.
	@.venv/bin/python -c "$(PURELIB)" > "$$(.venv-ray/bin/python -c "$(PURELIB)")/headrace.pth"
	.venv-ray/bin/pip install --quiet -c constraints.txt "ray[serve]==2.60.*"
	PYTHONPATH=. .venv-ray/bin/python -m pytest -p no:cacheprovider tests/test_ray_replicas.py $(ARGS)

# An environment that sees the GPU is used as it is; else ours is made.
GPU_PYTHON = $$(if $(PYTHON) -m scripts.gpu_python 2>/dev/null; then echo $(PYTHON); \
	else $(SELF) --no-print-directory .venv/.installed-dev >&2 && echo .venv/bin/python; fi)

gpu: ## On a CUDA GPU: measure and check, part by part (gpu-bench, gpu-kernels, ...); installs nothing if PYTHON sees the GPU
	@$(GPU_PYTHON) -m scripts.gpu_suite bench kernels engine server -- $(ARGS)

gpu-bench: ## Measure what the GPU does of what it can, alone and in engines of full size; ends within 8 minutes, as the other parts do
	@$(GPU_PYTHON) -m scripts.gpu_suite bench -- $(ARGS)

gpu-kernels: ## Hold kernels against their references on the GPU, and small engines against generate
	@$(GPU_PYTHON) -m scripts.gpu_suite kernels -- $(ARGS)

gpu-engine: ## Check engines on the GPU: recording, overlap, FP8, ranks, images, lack of memory
	@$(GPU_PYTHON) -m scripts.gpu_suite engine -- $(ARGS)

gpu-server: ## Measure a whole server on the GPU over HTTP: start, TTFT, inter-token latency
	@$(GPU_PYTHON) -m scripts.gpu_suite server -- $(ARGS)

gpu-soak: ## Send a server on the GPU random requests for five minutes; memory and words must stay
	@$(GPU_PYTHON) -m scripts.gpu_suite soak -- $(ARGS)

test-oldest: .venv/.installed-dev ## Run the quick tests on the oldest transformers that is taken, which GPU machines may have
	@test -d .transformers/huggingface_hub || .venv/bin/pip install --quiet --no-deps --target .transformers "transformers==5.17.*" "huggingface_hub<2"
	PYTHONPATH=.transformers .venv/bin/python -m pytest -p no:cacheprovider -W ignore::FutureWarning -m "not slow" tests/engine tests/test_gpu_environment.py $(ARGS)

lint: .venv/.installed-dev ## Check style, format, types and the documentation's tables
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python -m scripts.generate_docs --check
	.venv/bin/python -m scripts.check_pages
	.venv/bin/python -m scripts.lock --check
	.venv/bin/python -m scripts.check_deployment

format: .venv/.installed-dev ## Format the code
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

docs: .venv/.installed-dev ## Rewrite the documentation's generated tables
	.venv/bin/python -m scripts.generate_docs

clean: ## Remove the environment and everything built
	rm -rf .venv .venv-compat .venv-lm-eval .venv-ray .clients .transformers .node .tools build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The stamps are newer than what decides the content of .venv, so a second run starts at once.
.venv/.installed: pyproject.toml constraints.txt scripts/install.py
	@command -v $(PYTHON) >/dev/null || { echo "Headrace needs Python 3.11 or newer, and there is no $(PYTHON) here."; exit 1; }
	@$(PYTHON) scripts/install.py
	@touch $@

.venv/.installed-dev: pyproject.toml constraints.txt scripts/install.py
	@command -v $(PYTHON) >/dev/null || { echo "Headrace needs Python 3.11 or newer, and there is no $(PYTHON) here."; exit 1; }
	@$(PYTHON) scripts/install.py --dev
	@touch .venv/.installed $@
