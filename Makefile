# Two commands do everything on a fresh machine: `make chat` and `make test`. Both are safe to run again.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
HOST ?= 127.0.0.1
PORT ?= 7860
ARGS ?=

.PHONY: chat test test-long lint format check clean

chat: $(VENV)/.chat  ## Serve the chat (MODEL=org/name, a directory or a .gguf file for another model; ARGS=... for more flags)
	$(BIN)/keepwarm serve --host $(HOST) --port $(PORT) $(if $(MODEL),--model "$(MODEL)") $(ARGS)

test: $(VENV)/.test browser  ## Run all tests, Chromium included
	$(BIN)/python -m pytest $(ARGS)

test-long: $(VENV)/.test browser  ## The tests that take minutes each: long fuzzing, kills, crowds
	$(BIN)/python -m pytest -m long --timeout=3600 $(ARGS)

lint: $(VENV)/.test  ## Formatter, linter, type checker, import rules, installed packages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PIP) check

format: $(VENV)/.test  ## Format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove the virtual environment and the tools' caches; conversations and models stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info

.PHONY: browser
browser:
	@sh tools/ensure_chromium.sh

$(BIN)/python:
	@sh tools/ensure_python.sh "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.chat: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.chat
	$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@
