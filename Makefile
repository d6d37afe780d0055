# The words of the loops. CI says the same: see .ci/run.
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest -n auto

.PHONY: setup unit test lint slow chaos interop systemd picture ci

setup: ## a virtual environment with everything, and the hooks of git
	python3 -m venv .venv
	.venv/bin/pip install --quiet --editable '.[dev]'
	test ! -d .git || .venv/bin/pre-commit install

unit: ## what needs no child process, no server and no root: seconds
	$(PYTHON) -m pytest -q -m "unit and not children and not root and not slow"

test: ## the README's test command
	$(PYTEST)

lint: ## style, types, layers
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

slow chaos: ## minutes each; one test a core, since many look at times
	$(PYTHON) -m pytest -n logical --dist worksteal -m "$@ and not systemd"

interop: ## opens archives with other programs than GnuPG and GNU tar
	$(PYTHON) -m pytest -m interop

systemd: ## boots a container with a real systemd; as root
	$(PYTHON) -m pytest -m systemd

picture: ## docs/demo.svg
	$(PYTHON) docs/picture.py

ci: ## everything, on this machine and on Debian forky; as root
	.ci/run
