# Development tasks; `make` lists them. Missing requirements are installed automatically.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Prefer Debian's Python if it is new enough: a Python built without profile-guided optimization is about 50 % slower.
PYTHON := $(or $(shell for python in /usr/bin/python3 python3; do $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' && \
	command -v $$python && break; done 2>/dev/null),python3)
# A Python that supports the newest ansible-core.
NEWEST = $(shell for python in python3.13 python3.12; do $$python -c '' && command -v $$python && break; done 2>/dev/null)
HOSTS := $(PYTHON) -m tools.hosts
VENV := .venv
SCENARIO ?= default
# One more than the number of processors: a scenario spends a third of its time waiting.
JOBS ?= $(shell echo $$(($$(nproc) + 1)))
# The parts that fail most often come first, then the longest.
PARTS := lint unit molecule-release molecule-edge molecule-fleet molecule-services molecule-ubuntu molecule-recipes integration molecule-default judges molecule-roles molecule-hosts molecule-consumer
CHECKED := lint unit molecule-default integration

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Compile modules once for hundreds of processes.
unexport PYTHONDONTWRITEBYTECODE
# Molecule's borders wrap long lines, which tools/failures.py reads.
export MOLECULE_COMMAND_BORDERS := false

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: $(VENV)/installed ## boot and provision a host on this machine, and print its URL; RELEASE=noble for Ubuntu 24.04
	@$(HOSTS) up --fleet demo demo1$(RELEASE:%=:%)
	@ansible-playbook site.yml -i inventories/demo
	@$(HOSTS) list --fleet demo | awk '$$1 == "demo1" {print "http://" $$2 "/"}'

.PHONY: demo-down
demo-down: ## remove the demo
	@$(HOSTS) down --all --fleet demo

# Run every part, also after a failure, and print the table of times.
define run
@mkdir -p .cache; rm -f .cache/times
@ended=0; $(MAKE) --no-print-directory --keep-going --jobs=$(JOBS) $(1:%=timed-%) || ended=$$?; \
	sort --key=2 --numeric-sort --reverse .cache/times | awk '{printf "%-18s %3d:%02d  %s\n", $$1, $$2 / 60, $$2 % 60, $$3}'; \
	printf '%-18s %3d:%02d\n' "total" $$((SECONDS / 60)) $$((SECONDS % 60)); exit $$ended
endef

.PHONY: check
check: $(VENV)/installed ## lint, unit and integration tests, and the default scenario: run it while working on a change
	$(call run,$(CHECKED))

.PHONY: test
test: $(VENV)/installed ## check, every scenario and the judges: about an hour
	$(call run,$(PARTS))

timed-%:
	@ended=0; $(MAKE) --no-print-directory $* 2>&1 | (trap '' INT; sed --unbuffered 's/^/$*: /') || ended=$$?; \
		echo "$* $$SECONDS $$( ((ended)) && echo failed || echo passed )" >> .cache/times; exit $$ended

.PHONY: lint
lint: $(VENV)/installed ## yamllint, ansible-lint, ruff, mypy, import-linter, and the check of file access by root
	yamllint --strict .
	ansible-lint -q --strict
	ruff check --quiet
	ruff format --check --quiet
	mypy --package ansible_collections.funnel.tornado.plugins
	mypy tools tests molecule roles files
	$(VENV)/bin/python -m tools.check_paths
	PYTHONPATH=.collections lint-imports --no-logo --no-cache

.PHONY: judges
judges: $(VENV)/installed .cache/judges/installed ## ansible-test, galaxy-importer and antsibull, on the built artifact
	@$(VENV)/bin/python -m tests.judges

.PHONY: unit
unit: $(VENV)/installed ## unit tests, without a host
	pytest --quiet tests/unit

.PHONY: integration
integration: $(VENV)/installed ## tests of the runner, the sample apps and the tools, on this machine
	@$(PYTHON) -m tools.packages openssl
	pytest tests/integration files

.PHONY: molecule
molecule: molecule-$(SCENARIO) ## one scenario on booted hosts: make molecule SCENARIO=default

# Molecule removes the hosts after a failure, but not after Ctrl-C. Its default state directory is in the user's home and shared
# by all clones with the same directory name.
molecule-%: $(VENV)/installed
	@trap '$(HOSTS) down --all --fleet molecule-$*; exit 130' INT TERM; \
		MOLECULE_EPHEMERAL_DIRECTORY=$(CURDIR)/.cache/molecule/$* molecule test $(patsubst %,--scenario-name %,$(filter-out default,$*))

.PHONY: chaos
chaos: $(VENV)/installed ## random operations and faults under load; SEED=n MINUTES=m APP_HOSTS=2 BALANCERS=2 RELEASE=noble; STEPS=3,5-7 replays steps
	@$(VENV)/bin/python -m tests.chaos $(SEED:%=--seed %) $(MINUTES:%=--minutes %) $(STEPS:%=--steps %) $(RELEASE:%=--release %) \
		$(APP_HOSTS:%=--hosts %) $(BALANCERS:%=--balancers %)

.PHONY: newest
newest: ## unit tests and the default scenario, with the newest ansible-core on the newest Python
	@[[ "$(NEWEST)" ]] || { echo "Python 3.12 or newer is required; found neither python3.13 nor python3.12" >&2; exit 1; }
	@$(MAKE) --no-print-directory VENV=.cache/newest PYTHON=$(NEWEST) unit molecule

.PHONY: bench
bench: $(VENV)/installed ## benchmarks, compared to a manual setup; PART=static measures one part
	@$(PYTHON) -m tools.packages nghttp2-client wrk
	@$(VENV)/bin/python -m tests.bench $(PART)

.PHONY: docs
docs: $(VENV)/installed ## generate the reference of keys, variables, modules and filters
	@PYTHONPATH=.collections:. $(VENV)/bin/python tools/docs.py

.PHONY: lock
lock: $(VENV)/installed ## update the pinned tools: requirements-dev.in to requirements-dev.txt
	@uv pip compile --quiet --universal --python-version 3.11 --no-header --no-emit-index-url \
		requirements-dev.in --output-file requirements-dev.txt
	@uv pip compile --quiet --universal --python-version 3.11 --no-header --no-emit-index-url \
		requirements-judges.in --output-file requirements-judges.txt

# Debian's python3 lacks ensurepip.
$(VENV)/installed: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		f"Python 3.11 or newer is required; $(PYTHON) is {sys.version.split()[0]}. Run make PYTHON=/path/to/python")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(PYTHON) -m tools.packages python3-venv
	@echo "Installing the tools into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@

.cache/judges/installed: requirements-judges.txt | $(VENV)/installed
	@echo "Installing the judges into .cache/judges"
	@$(PYTHON) -m venv --clear .cache/judges/venv
	@.cache/judges/venv/bin/pip install --quiet --disable-pip-version-check --requirement requirements-judges.txt
	@touch $@
