# Sidestep: every target installs what it needs, says so, and may be run again at any time.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# The compiler child needs Debian's bcc, which exists for the distribution's own interpreter only.
PYTHON := /usr/bin/python3

DEBIAN_RUN := python3-venv python3-bpfcc linux-headers-amd64 iproute2
DEBIAN_TEST := nginx-light curl openssl bpftool nftables procps strace

.PHONY: help
help: ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

.PHONY: demo
demo: setup ## Tell the story once: a real nginx, a real handler, every promise observed
	@$(BIN)/python -m tests.demo

.PHONY: test
test: setup ## Run every test, privileged ones included (needs root)
	@$(BIN)/python -m pytest -q

.PHONY: check
check: $(VENV)/.stamp ## Lint, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/.stamp ## Rewrite the sources in the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: lock
lock: ## Pin the dependencies of pyproject.toml again (needs uv)
	@uv pip compile -q --python $(PYTHON) --generate-hashes --no-emit-index-url --no-header --extra cluster \
		--group dev pyproject.toml -o requirements.lock

.PHONY: setup
setup: supported packages $(VENV)/.stamp ## Install everything a run needs

.PHONY: supported
supported:
	@[ "$$(id -u)" = 0 ] || { echo "sidestep: run this as root (network namespaces and eBPF need it): sudo make $(MAKECMDGOALS)" >&2; exit 1; }
	@[ -x /usr/bin/apt-get ] || { echo "sidestep: this needs a Debian or Ubuntu machine (apt-get was not found)" >&2; exit 1; }
	@[ "$$(uname -s)" = Linux ] && [ -e /sys/kernel/btf/vmlinux -o -d /sys/fs/bpf ] || { echo "sidestep: this needs Linux 5.10 or later with eBPF" >&2; exit 1; }

.PHONY: packages
packages: supported
	@missing=(); for name in $(DEBIAN_RUN) $(DEBIAN_TEST); do \
		[ "$$(dpkg-query -W -f '$${db:Status-Status}' $$name 2>/dev/null)" = installed ] || missing+=($$name); done; \
	if [ $${#missing[@]} -gt 0 ]; then \
		echo "Installing Debian packages: $${missing[*]}"; \
		export DEBIAN_FRONTEND=noninteractive; \
		apt-get update -qq; \
		RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; \
	fi

$(VENV)/.stamp: requirements.lock pyproject.toml
	@[ -x $(PYTHON) ] && $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || $(MAKE) --no-print-directory packages
	@echo "Preparing the virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: clean
clean: ## Remove what the targets above created in this directory
	@rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
