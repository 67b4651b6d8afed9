# `make help` lists what there is.
PYTHON ?= python3
BIN := .venv/bin
ENGINE ?=
ARGS ?=
LIGHT := $(if $(filter echo,$(ENGINE)),--light)

.DEFAULT_GOAL := help
.PHONY: help up test test-fast lint types format bench chaos simulate clean setup setup-dev setup-light

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

up: setup ## install, start everything, ask one question (ENGINE=echo: no model; ARGS='--once': see headrace up --help)
	@$(BIN)/headrace up $(if $(ENGINE),--engine $(ENGINE)) $(ARGS)

test: setup-dev ## lint, types and all tests, those on a real model too
	@$(MAKE) --no-print-directory lint types
	$(BIN)/pytest $(ARGS)

test-fast: setup-light ## the same without vLLM
	@$(MAKE) --no-print-directory lint types
	$(BIN)/pytest -m 'not vllm' $(ARGS)

lint: ## rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: ## mypy, strict
	$(BIN)/mypy

format: ## put the code into its format, mend what can be mended
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: setup-dev ## throughput and latency beside bare vLLM and its own server (minutes)
	$(BIN)/python -m tests.bench $(ARGS)

chaos: setup-dev ## break everything for a while under load, then audit every promise (ARGS='--minutes 20 --seed 7')
	@$(BIN)/python -m tests.chaos $(ARGS)

simulate: setup-dev ## replay traces against the scheduler's policy in simulated time (ARGS='weights --out DIR', or --trace FILE)
	@$(BIN)/python -m tests.simulate $(ARGS)

clean: ## remove what was installed and built (data of Redis and converted models stay)
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find services shared tests deploy -name __pycache__ -type d -prune -exec rm -rf {} +

setup:
	@$(PYTHON) deploy/setup.py $(LIGHT)

setup-dev:
	@$(PYTHON) deploy/setup.py --extras dev

setup-light:
	@$(PYTHON) deploy/setup.py --light --extras dev
