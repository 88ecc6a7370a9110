# Everything a developer runs. `make test` in a fresh clone sets itself up.
PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.complete
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help venv test test-slow test-browser check format docs demo wheel clean
.DELETE_ON_ERROR:

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' Makefile | expand -t 18

venv: $(STAMP) ## set up .venv (PYTHON=python3.12 to choose); nothing to do while the pins stay

# torch by its exact version first, so that nothing else chooses which build of it comes
$(STAMP): constraints.txt pyproject.toml
	@echo "Setting up .venv (some minutes the first time)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install -q "torch==$(TORCH)"
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	@touch $@

test: $(STAMP) ## the tests, one process a core; ARGS="-k plan -x" goes to pytest
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-slow: $(STAMP) ## the tests marked slow
	$(BIN)/python -m pytest -m slow $(ARGS)

test-browser: $(STAMP) ## reports in headless Chromium; installs Debian's where it may, and says so where it can't
	@.ci/browser $(ARGS)

check: $(STAMP) ## format, lint, types, the line of the data; changes nothing
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## format, and mend what the linter can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

demo: $(STAMP) ## search 4 steps for the bundled model, into demo/; run again, it shows the result again
	$(BIN)/python -m autodiffusion search mnist --steps 4 --solver gls --budget 80000 --out demo
	@printf '\nThe files:\n'; printf '  %s\n' demo/*

wheel: $(STAMP) ## build the distributions into dist/
	rm -rf build dist
	$(BIN)/python -m build

docs: $(STAMP) ## build the pages of docs/ into site/
	$(BIN)/mkdocs build --strict

clean: ## remove builds, caches and demo/ (.venv stays)
	rm -rf build dist demo site src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests bench training -name __pycache__ -type d -prune -exec rm -rf {} +
