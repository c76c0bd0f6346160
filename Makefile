# Everything is run from .venv, which `setup` makes and keeps up to date; see .ci/setup.

export PYTHON ?=
venv := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup test test-fast baseline bench constraints clean

help:  ## this list
	@echo "make TARGET, one of:"
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

setup:  ## make .venv with the pinned versions, if it is not there and up to date (PYTHON=... names an interpreter)
	@.ci/setup

test: setup  ## every check: format, lint, types, layers, all tests and doctests
	$(venv)/ruff check
	$(venv)/ruff format --check
	$(venv)/mypy
	$(venv)/lint-imports --no-cache
	@# One failed test of the first hides none of the second.
	trap 'exit 130' INT; failed=0; \
	$(venv)/python -m pytest -q -n auto --dist worksteal -m "not ray" || failed=1; \
	$(venv)/python -m pytest -q -m ray || failed=1; \
	exit $$failed

test-fast: setup  ## the tests that need no cluster, no browser and no patience
	$(venv)/python -m pytest -q -m "not (slow or ray or fault or browser)"

baseline: setup  ## the main job: the random-search baseline on MNIST-1D; run it again to resume
	$(venv)/sparsefront run examples/baseline.toml --dir runs/baseline

bench: setup  ## measure speed on this machine
	$(venv)/python -m benchmarks

constraints:  ## resolve the newest allowed versions into constraints.txt
	@.ci/constraints

clean:  ## remove .venv and every cache; runs/ stays
	rm -rf .venv .cache build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . \( -path ./.git -o -path ./runs \) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
