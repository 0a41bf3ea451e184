# Sidestep: every target installs what it needs, says so, and may be run again at any time.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
# The compiler child needs Debian's bcc, which exists for the distribution's own interpreter only.
PYTHON := /usr/bin/python3

# Any kernel's headers serve (the program uses UAPI types only), so the distribution's newest ones are taken.
ifneq ($(shell . /etc/os-release 2>/dev/null; echo $${ID-} $${ID_LIKE-} | grep -o ubuntu),)
DEBIAN_HEADERS := linux-headers-generic
DEBIAN_BPFTOOL := linux-tools-common linux-tools-generic
else
DEBIAN_HEADERS := linux-headers-$(shell dpkg --print-architecture 2>/dev/null)
DEBIAN_BPFTOOL := bpftool
endif

DEBIAN_RUN := python3-venv python3-bpfcc $(DEBIAN_HEADERS) iproute2
DEBIAN_TEST := nginx-light libnginx-mod-http-echo curl openssl $(DEBIAN_BPFTOOL) nftables procps strace nghttp2-client \
	redis-server redis-tools
# nginx is wanted as a program, not as a service of this machine: while it is installed, no service may start.
POLICY := /usr/sbin/policy-rc.d

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
		if [ ! -e $(POLICY) ]; then \
			trap 'rm -f $(POLICY)' EXIT; printf '#!/bin/sh\nexit 101\n' >$(POLICY); chmod 755 $(POLICY); \
		fi; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null \
			|| { echo "sidestep: apt-get could not install: $${missing[*]}" >&2; exit 1; }; \
	fi

$(VENV)/.stamp: requirements.lock pyproject.toml
	@[ -x $(PYTHON) ] && $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || $(MAKE) --no-print-directory packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sidestep: this needs Python 3.11 or later as $(PYTHON) (Debian 12, Ubuntu 24.04 have it)" >&2; exit 1; }
	@echo "Preparing the virtual environment in $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: clean
clean: ## Remove what the targets above created in this directory
	@rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
