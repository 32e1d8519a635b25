# The only commands that a contributor learns; CI runs the same ones. Each does its own set-up.
UV := .tools/bin/uv
BIN := .venv/bin
SYNC := $(UV) sync --quiet --frozen --inexact
export UV_PROJECT_ENVIRONMENT := .venv
# certificates that the machine trusts (a company's own, say), where it has any
export UV_SYSTEM_CERTS := $(if $(wildcard /etc/ssl/certs/ca-certificates.crt),true,false)

.PHONY: help serve install test lint format bench clean

help: ## what there is
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:[^#]*## /\t/'

serve: .venv/.serve ## run the server on http://127.0.0.1:8000 (ARGS="--port 9000 --workers 2")
	$(BIN)/hubbub serve $(ARGS)

install: .venv/.dev ## only create .venv, with everything

test: .venv/.dev ## all tests, with what they need (ARGS="-k name")
	scripts/ensure-chromium
	scripts/ensure-nginx
	scripts/ensure-redis
	scripts/run-tests $(ARGS)

lint: .venv/.dev ## ruff, mypy --strict, pyright on the public API
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright

format: .venv/.dev ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.bench ## measure beside the peers (ARGS="--quick")
	$(BIN)/python -m bench $(ARGS)

clean: ## remove what make made
	rm -rf .venv .tools .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(UV):
	scripts/bootstrap

# with what `--workers` needs
.venv/.serve: uv.lock pyproject.toml | $(UV)
	$(SYNC) --no-dev --extra workers
	@touch $@

.venv/.dev: uv.lock pyproject.toml | $(UV)
	$(SYNC) --group dev
	@touch $@ .venv/.serve

.venv/.bench: uv.lock pyproject.toml | $(UV)
	$(SYNC) --group dev --group bench
	@touch $@ .venv/.dev .venv/.serve
