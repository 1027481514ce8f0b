# One command for each habit, the same for people and for CI. Everything lives in .venv; a second run
# installs nothing unless pyproject.toml changed.

PYTHON ?= python3
PORT ?= 8000
ARGS ?=
PIP_ARGS ?=
BENCH_OUTPUT ?= .bench/results

VENV := .venv
BIN := $(VENV)/bin
# An environment like that of the TensorRT-LLM image, whose Python is 3.12 where there is one.
IMAGE_VENV := .venv-image
# Clients whose requirements clash with ours, and those that are no Python.
CLIENTS_VENV := .venv-clients
CLIENTS_NODE := tests/clients/node
IMAGE_PYTHON ?= $(shell python3.12 -c 'import sys; print(sys.executable)' 2>/dev/null || echo $(PYTHON))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve test test-image test-clients check lint format-check types scripts format docs bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/.installed-serve ## install, build the sample engine if there is none, serve it on PORT
	@ls engines/*/engine.json >/dev/null 2>&1 || $(BIN)/deepinfer build --model sample
	@exec $(BIN)/deepinfer serve --engine-dir engines --port $(PORT) $(ARGS)

test: $(VENV)/.installed-dev ## install what tests need, run them (ARGS goes to pytest)
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-image: $(IMAGE_VENV)/.installed ## run the GPU path on the double, in an environment like the image's
	TEST_IMAGE=1 $(IMAGE_VENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder -k 'not openvino and not simulated' $(ARGS) tests/contract tests/image \
		tests/backends/test_promises.py tests/backends/test_tensorrt_*.py \
		tests/server/test_chat.py tests/server/test_completions.py

test-clients: $(VENV)/.installed-dev $(CLIENTS_VENV)/.installed node-clients ## run other people's clients against the server
	TEST_CLIENTS=1 $(BIN)/python -m pytest $(ARGS) tests/clients

check: lint format-check types scripts ## ruff check, ruff format --check, mypy --strict, shellcheck, hadolint

lint: $(VENV)/.installed-dev ## ruff check
	$(BIN)/ruff check .

format-check: $(VENV)/.installed-dev ## ruff format --check
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev ## mypy --strict on the package
	$(BIN)/mypy

scripts: $(VENV)/.installed-dev ## shellcheck on the shell scripts, hadolint on the Dockerfile
	$(BIN)/shellcheck --external-sources .ci/run $(wildcard build/ngc/*.sh)
	$(BIN)/hadolint Dockerfile

format: $(VENV)/.installed-dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev ## write docs/cli.md and the tables of docs/api.md again
	$(BIN)/python tools/make_cli_docs.py
	$(BIN)/python tools/make_api_docs.py

bench: $(VENV)/.installed-dev ## measure DeepInfer beside its peers for half an hour, into BENCH_OUTPUT (ARGS: --help)
	$(BIN)/python -m benchmarks.side_by_side --output $(BENCH_OUTPUT) --pip-args='$(PIP_ARGS)' $(ARGS)

$(IMAGE_VENV)/.installed: pyproject.toml tests/image/requirements.txt
	@rm -rf $(IMAGE_VENV)
	$(IMAGE_PYTHON) -m venv $(IMAGE_VENV)
	$(IMAGE_VENV)/bin/python -m pip install $(PIP_ARGS) . --requirement tests/image/requirements.txt
	@touch $@

$(CLIENTS_VENV)/.installed: tests/clients/python/requirements.txt | $(BIN)/python
	@rm -rf $(CLIENTS_VENV)
	$(BIN)/python -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python -m pip install $(PIP_ARGS) --requirement $<
	@touch $@

# Without npm the tests say that they are skipped; with it, a failed installation is an error.
.PHONY: node-clients
node-clients:
	@if command -v npm >/dev/null; then $(MAKE) $(CLIENTS_NODE)/node_modules/.installed; \
		else echo "npm is not installed: the clients for Node.js are skipped"; fi

$(CLIENTS_NODE)/node_modules/.installed: $(CLIENTS_NODE)/package.json $(CLIENTS_NODE)/package-lock.json
	npm ci --prefix $(CLIENTS_NODE)
	@touch $@

clean: ## remove caches and built packages; .venv*, .bench and engines stay
	rm -rf dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . \( -path './$(VENV)*' -o -path ./.bench -o -name node_modules \) -prune -o -type d -name __pycache__ -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: DeepInfer needs Python 3.11 or later; \`$(PYTHON)\` is not"; \
		  echo "hint: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; } >&2
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "hint: on Debian and Ubuntu, install the package python3-venv" >&2; exit 1; }

$(VENV)/.installed-serve: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_ARGS) --editable '.[openvino-build]'
	@touch $@

# What tests need includes what serving needs.
$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install $(PIP_ARGS) --editable '.[dev]'
	@touch $@ $(VENV)/.installed-serve
