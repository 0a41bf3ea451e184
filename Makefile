# Sidestep: every target installs what it needs, says so, and may be run again at any time.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Modules of a checkout are compiled once, not by each of the many processes that the tests start.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
# The compiler child needs Debian's bcc, which exists for the distribution's own interpreter only.
PYTHON := /usr/bin/python3
IMAGE = $(shell sed -n 's/^ *image: *//p' deploy/daemonset.yaml)

# Any kernel's headers serve (the program uses UAPI types only), so the distribution's newest ones are taken.
ifneq ($(shell . /etc/os-release 2>/dev/null; echo $${ID-} $${ID_LIKE-} | grep -o ubuntu),)
DEBIAN_HEADERS := linux-headers-generic
DEBIAN_BPFTOOL := linux-tools-common linux-tools-generic
else
DEBIAN_HEADERS := linux-headers-$(shell dpkg --print-architecture 2>/dev/null)
DEBIAN_BPFTOOL := bpftool
endif

# The library of the web application firewall has another name from Debian 13 and Ubuntu 24.04 on.
ifeq ($(shell . /etc/os-release 2>/dev/null; echo $${VERSION_CODENAME-}),bookworm)
DEBIAN_WAF := libmodsecurity3
else
DEBIAN_WAF := libmodsecurity3t64
endif

DEBIAN_RUN = python3-venv python3-bpfcc $(DEBIAN_HEADERS) iproute2
DEBIAN_TEST = nginx-light libnginx-mod-http-echo curl openssl $(DEBIAN_BPFTOOL) nftables procps strace nghttp2-client \
	redis-server redis-tools dnsmasq-base apache2 python3-seccomp tshark gnutls-bin libnss3-tools suricata \
	modsecurity-crs $(DEBIAN_WAF) sqlmap chromium chromium-driver postgresql wget nodejs proxychains4
# What makes the Debian roots that a Kubernetes node is built and booted in (tests/e2e); nothing of it is installed here.
DEBIAN_E2E := debootstrap debian-archive-keyring
# What boots other kernels (tests/kernels), in addition to that.
DEBIAN_KERNELS := python3-venv $(DEBIAN_E2E) qemu-system-x86 busybox-static kmod cpio zstd e2fsprogs
# Peers and load generators (tests/bench).
DEBIAN_BENCH := haproxy wrk golang-go
DEBIAN = $(DEBIAN_RUN) $(DEBIAN_TEST)
# Peers are wanted as programs, not as services of this machine: while they are installed, no service may start.
POLICY := /usr/sbin/policy-rc.d
# Where Debian 12 has Suricata; its packages are installed by name only, all others stay those of the release.
BACKPORTS := /etc/apt/sources.list.d/sidestep-backports.list
KEYRING := /usr/share/keyrings/debian-archive-keyring.gpg

# An environment of its own in the folder of the target, with what the lock that stands first among its prerequisites names.
LOCKED = $(PYTHON) -m venv --clear --without-pip $(@D) && $(BIN)/pip -q --disable-pip-version-check \
	--python $(@D)/bin/python install --only-binary=:all: --require-hashes -r $<

.PHONY: help
help: ## Show this list
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

.PHONY: demo
demo: setup ## Tell the story once: a real nginx, a real handler, every promise observed
	@$(BIN)/python -m tests.demo

# Files of the tests with real parts run side by side: they wait more than they compute, and what they make is named after
# their process. Tests with the marker `alone` measure time or count what the whole machine holds; they run one by one.
BESIDE := -n 5 --dist loadfile --no-loadscope-reorder -m "not alone"
# Files with such tests: to collect all others takes most of a minute.
ALONE = $$(grep -rlw --include='test_*.py' mark.alone tests)
# The tests that take longest are named at the end of each part.
OPTIONS := -q --cache-clear --durations=15 --durations-min=4
PYTEST = $(BIN)/python -m pytest $(OPTIONS)
# What follows a run in which tests failed (1), not one that was interrupted: see tests/again.py.
AGAIN = || { [ $$? = 1 ] && $(BIN)/python -m tests.again; }

.PHONY: test
test: setup ## Run every test, privileged ones included, and measure branch coverage (needs root)
	@$(BIN)/python -m tests.side_by_side $(OPTIONS) $(BESIDE) tests/integration tests/privileged tests/system
	@$(PYTEST) -m alone $(ALONE) $(AGAIN)

# FILES=tests/a,tests/b: also in another root, e.g. make debian13 TARGET="test-files FILES=tests/privileged/ids".
FILES := tests/unit
COMMA := ,
.PHONY: test-files
test-files: setup ## Run the tests of some files and folders (needs root; FILES=tests/privileged/ids,tests/system/test_ids.py)
	@$(PYTEST) $(subst $(COMMA), ,$(FILES)) $(AGAIN)

.PHONY: test-quick
test-quick: setup ## Unit tests, integration tests and the demo, at most five minutes (needs root)
	@$(PYTEST) -n auto --dist loadfile -m "not alone" tests/unit $(AGAIN)
	@$(PYTEST) $(BESIDE) tests/integration $(AGAIN)
	@$(BIN)/python -m tests.demo

# The least share of lines and branches together, in percent, that the unit tests of these packages, without the randomised
# ones, must reach in each of them (tests/unit/conftest.py).
COVERED := model:97 config:96 policy:97 protocols:98 engine:95 node/planning:98
COVERAGE = $(BIN)/python -m coverage
# Other tests may run meanwhile, and keep what failed among them (tests/side_by_side.py).
UNIT_CACHE := .cache/pytest-unit

.PHONY: coverage
coverage: $(VENV)/.stamp ## Run the unit tests and measure the branch coverage of the packages that do no I/O
	@mkdir -p build .cache/coverage
	@$(COVERAGE) erase
	@$(COVERAGE) run -m pytest -q --cache-clear -o cache_dir=$(UNIT_CACHE) -n auto --dist loadfile -m "not alone" tests/unit \
		|| { [ $$? = 1 ] && $(BIN)/python -m tests.again $(UNIT_CACHE); }
	@$(COVERAGE) combine -q
	@for each in $(COVERED); do \
		package=$${each%:*} least=$${each#*:}; \
		$(COVERAGE) report --include="*/sidestep/$$package/*" --fail-under=$$least >build/coverage.txt \
			|| { cat build/coverage.txt; echo "sidestep: $$package: less than $$least % of lines and branches" >&2; exit 1; }; \
		echo "$$package: $$(sed -n 's/^TOTAL.* //p' build/coverage.txt) of lines and branches"; \
	done

# TARGET: what is run there, e.g. `make debian13 TARGET="demo test"`. NETWORK=machine: for targets that fetch something.
TARGET := check demo test
NETWORK :=
.PHONY: debian12 debian13
debian12 debian13: DEBIAN_HEADERS = linux-headers-$(shell dpkg --print-architecture)
debian12 debian13: DEBIAN_BPFTOOL = bpftool
debian12: DEBIAN_WAF = libmodsecurity3
debian12: $(VENV)/.stamp ## The same targets in a Debian 12 root that debootstrap makes (needs root; TARGET="demo test")
	@$(BIN)/python -m tests.debian.suite bookworm "$(DEBIAN)" "$(TARGET)" $(NETWORK)
debian13: $(VENV)/.stamp ## The same targets in a Debian 13 root that debootstrap makes (needs root; TARGET="demo test")
	@$(BIN)/python -m tests.debian.suite trixie "$(DEBIAN)" "$(TARGET)" $(NETWORK)

.PHONY: soak
soak: setup ## Half an hour of traffic at the limits of a port, and while everything of ours is killed in turn (needs root; SOAK=--fail: under a policy that fails closed)
	@$(BIN)/python -m tests.soak $(SOAK)

# E2E="tests/e2e/test_absence.py tests/e2e/test_faults.py": a selection.
E2E := tests/e2e
.PHONY: e2e
e2e: DEBIAN += $(DEBIAN_E2E)
e2e: setup ## Test on a real Kubernetes node, built from Debian's sources and booted in namespaces (needs root)
	@$(PYTEST) $(E2E) $(AGAIN)

.PHONY: e2e-kind
e2e-kind: DEBIAN += $(DEBIAN_E2E)
e2e-kind: setup ## Test on a kind cluster of two nodes, made of Debian's packages and sources (needs root)
	@$(PYTEST) tests/kind $(AGAIN)

# KERNELS="5.10 6.12": a selection of 5.10, 6.1, 6.12 and newest. STEPS=doctor,demo: a selection of tests/kernels/steps.py.
KERNELS :=
STEPS :=
.PHONY: kernels
kernels: DEBIAN = $(DEBIAN_KERNELS)
kernels: DEBIAN_HEADERS = linux-headers-amd64
kernels: DEBIAN_BPFTOOL = bpftool
kernels: setup ## Boot Debian's kernels under QEMU and test in each, for hours; prints a table (needs root; KERNELS="5.10 6.12")
	@$(BIN)/python -m tests.kernels --packages "$(DEBIAN_RUN) $(DEBIAN_TEST)" --steps "$(STEPS)" $(KERNELS)

.PHONY: image
image: ## Build the node daemon's image (needs docker, podman or buildah)
	@tool=$$(command -v docker || command -v podman || command -v buildah) \
		|| { echo "sidestep: this needs docker, podman or buildah" >&2; exit 1; }; \
	ignore=; [ "$${tool##*/}" = docker ] || ignore=--ignorefile=deploy/Dockerfile.dockerignore; \
	echo "Building $(IMAGE) with $${tool##*/}"; \
	$$tool build $$ignore -f deploy/Dockerfile -t $(IMAGE) .

.PHONY: release release-check
release: $(VENV)/.stamp ## Build all that a release consists of into build/release (see RELEASING.md)
	@deploy/release

release-check: $(VENV)/.stamp ## The same dry, also where no base image can be fetched
	@deploy/release --check

.PHONY: site
site: build/mkdocs/.stamp ## Make a site of the documentation in build/site; a link that leads nowhere is an error
	@NO_MKDOCS_2_WARNING=1 build/mkdocs/bin/python -m mkdocs -q build -f deploy/site/mkdocs.yml

build/mkdocs/.stamp: deploy/site.lock | $(VENV)/.stamp
	@echo "Installing mkdocs in build/mkdocs"
	@$(LOCKED)
	@touch $@

# Helm's SDK, which renders the chart. Its package has no build for other machines; there the chart is not rendered.
build/helm/.stamp: deploy/helm.lock | $(VENV)/.stamp
	@mkdir -p build/helm
	@if [ "$$(uname -m)" = x86_64 ]; then \
		echo "Installing Helm's SDK in build/helm"; \
		$(LOCKED); \
	fi
	@touch $@

# The program that judges alerts, out of Debian's package; nothing is installed.
build/promtool/.stamp:
	@command -v apt-get >/dev/null || { echo "sidestep: this needs a Debian or Ubuntu machine (apt-get was not found)" >&2; exit 1; }
	@echo "Fetching promtool (Debian's package prometheus) into build/promtool"
	@rm -rf build/promtool && mkdir -p build/promtool
	@cd build/promtool && { apt-get download -qq prometheus 2>/dev/null || { apt-get update -qq && apt-get download -qq prometheus; }; }
	@dpkg-deb --fsys-tarfile build/promtool/prometheus_*.deb | tar -C build/promtool -x ./usr/bin/promtool
	@rm build/promtool/prometheus_*.deb && touch $@

.PHONY: kind
kind: ## Make a kind cluster with Sidestep in it (needs kind, kubectl, docker or podman)
	@deploy/kind.sh

# QEMU's user mode, and what makes roots of another architecture.
DEBIAN_EMULATE := qemu-user-static buildah $(DEBIAN_E2E)

.PHONY: arm64 image-arm64
arm64: DEBIAN += $(DEBIAN_EMULATE)
arm64: setup ## Compile the eBPF programs and run some unit tests as arm64, emulated, for an hour or more (needs root)
	@$(BIN)/python -m pytest -q tests/arm64/test_arm64.py

image-arm64: DEBIAN += $(DEBIAN_EMULATE)
image-arm64: setup ## Build the node daemon's image for arm64, emulated, and run it, about an hour (needs root)
	@$(BIN)/python -m pytest -q tests/arm64/test_image.py

.PHONY: fuzz
fuzz: $(VENV)/.stamp ## Let the randomised tests of parsers and relays look fifty times as long as in `make test`
	@SIDESTEP_FUZZ=50 $(BIN)/python -m pytest -q --timeout 7200 tests/unit/engine tests/unit/protocols \
		-k "fuzz or differential or arbitrary or hostile or exact or rechunk or hello or hpack"

.PHONY: bench
bench: DEBIAN += $(DEBIAN_BENCH)
bench: setup build/mitmproxy/.stamp ## Compare with haproxy, nginx, Go and mitmproxy, about 12 minutes; each figure beside its budget
	@MITMPROXY=build/mitmproxy/bin/mitmdump $(BIN)/python -m tests.bench --json build/bench.json --chart build/bench.svg --history tests/bench/history

# A peer of the benchmark, in an environment of its own.
build/mitmproxy/.stamp: tests/bench/mitmproxy.lock
	@echo "Installing mitmproxy in build/mitmproxy"
	@$(PYTHON) -m venv build/mitmproxy
	@build/mitmproxy/bin/pip install -q --disable-pip-version-check -r tests/bench/mitmproxy.lock
	@touch $@

.PHONY: bench-quick
bench-quick: DEBIAN += $(DEBIAN_BENCH)
bench-quick: setup ## CPU per request only, less than a minute
	@$(BIN)/python -m tests.bench --quick

.PHONY: check
check: $(VENV)/.stamp build/layers/.stamp ## Lint, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONPATH=daemon build/layers/bin/lint-imports

# What checks the layers brings a library that would make each process of the tests start later (pyproject.toml).
build/layers/.stamp: tests/layers.lock | $(VENV)/.stamp
	@echo "Installing import-linter in build/layers"
	@$(LOCKED)
	@touch $@

.PHONY: format
format: $(VENV)/.stamp ## Rewrite the sources in the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# The image gets the same versions, and only what the daemon needs.
COMPILE := uv pip compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate \
	--constraint requirements.lock

# For the oldest Python that is supported, on whatever machine: newer ones need no package more.
.PHONY: lock
lock: ## Pin the dependencies of pyproject.toml again (needs uv)
	@uv pip compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--group dev pyproject.toml -o requirements.lock
	@echo hatchling | $(COMPILE) - -o deploy/build.lock
	@$(COMPILE) pyproject.toml -o deploy/runtime.lock
	@$(COMPILE) --group layers -o tests/layers.lock
	@$(COMPILE) --group release -o deploy/release.lock
	@$(COMPILE) --group helm -o deploy/helm.lock
	@$(COMPILE) --group site -o deploy/site.lock

.PHONY: setup
setup: supported packages $(VENV)/.stamp ## Install everything a run needs

.PHONY: supported
supported:
	@[ "$$(id -u)" = 0 ] || { echo "sidestep: run this as root (network namespaces and eBPF need it): sudo make $(MAKECMDGOALS)" >&2; exit 1; }
	@[ -x /usr/bin/apt-get ] || { echo "sidestep: this needs a Debian or Ubuntu machine (apt-get was not found)" >&2; exit 1; }
	@[ "$$(uname -s)" = Linux ] && [ -e /sys/kernel/btf/vmlinux -o -d /sys/fs/bpf ] || { echo "sidestep: this needs Linux 5.10 or later with eBPF" >&2; exit 1; }

.PHONY: packages
packages: supported
	@missing=(); for name in $(DEBIAN); do \
		[ "$$(dpkg-query -W -f '$${db:Status-Status}' $$name 2>/dev/null)" = installed ] || missing+=($$name); done; \
	if [ $${#missing[@]} -gt 0 ]; then \
		echo "Installing Debian packages: $${missing[*]}"; \
		export DEBIAN_FRONTEND=noninteractive; \
		if [ ! -e $(POLICY) ]; then \
			trap 'rm -f $(POLICY)' EXIT; printf '#!/bin/sh\nexit 101\n' >$(POLICY); chmod 755 $(POLICY); \
		fi; \
		if [[ " $${missing[*]} " == *" suricata "* ]] && grep -q '^VERSION_CODENAME=bookworm' /etc/os-release; then \
			mirror=$$(apt-get indextargets --format '$$(REPO_URI)' 'Codename: bookworm' 'Created-By: Packages' | sed -n 1p); \
			echo "Adding bookworm-backports to the sources of apt ($(BACKPORTS)): Debian 12 has its suricata there"; \
			echo "deb [signed-by=$(KEYRING)] $$mirror bookworm-backports main" >$(BACKPORTS); \
			missing=("$${missing[@]/#suricata/suricata/bookworm-backports}" libhtp2/bookworm-backports); \
		fi; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null \
			|| { echo "sidestep: apt-get could not install: $${missing[*]}" >&2; exit 1; }; \
	fi

$(VENV)/.stamp: requirements.lock pyproject.toml
	@[ -x $(PYTHON) ] && $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || $(MAKE) --no-print-directory packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sidestep: this needs Python 3.11 or later as $(PYTHON) (Debian 12 and 13, Ubuntu 24.04 have it)" >&2; exit 1; }
	@echo "Preparing the virtual environment in $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: clean
clean: ## Remove what the targets above created in this directory
	@rm -rf $(VENV) build/layers .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
