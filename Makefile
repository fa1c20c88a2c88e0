# What a developer runs; `make` alone lists it. Everything that is needed and missing is installed on the way.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Debian's own where it is new enough: one that was built by hand without profiling takes about half as long again for everything.
PYTHON := $(or $(shell for one in /usr/bin/python3 python3; do $$one -c 'import sys; sys.exit(sys.version_info < (3, 11))' && \
	command -v $$one && break; done 2>/dev/null),python3)
# The newest ansible-core is installed where Python is new enough for it.
NEWEST = $(shell for one in python3.13 python3.12; do $$one -c '' && command -v $$one && break; done 2>/dev/null)
HOSTS := $(PYTHON) -m tools.hosts
VENV := .venv
SCENARIO ?= default
# One more than there are processors: a third of the time of a scenario is waiting.
JOBS ?= $(shell echo $$(($$(nproc) + 1)))
# What a change fails at most often comes first; then the longest, so that none of them is what is waited for at the end.
PARTS := lint unit molecule-edge molecule-fleet molecule-release molecule-services integration molecule-default judges molecule-roles molecule-consumer
CHECKED := lint unit molecule-default integration

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# What hundreds of processes load is compiled once.
unexport PYTHONDONTWRITEBYTECODE
# In a collection Molecule would rather have them elsewhere.
export MOLECULE_GLOB := molecule/*/molecule.yml

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: $(VENV)/installed ## boot a Debian host on this machine, provision it, and print the URL to open
	@$(HOSTS) up --fleet demo demo1
	@ansible-playbook site.yml -i inventories/demo
	@$(HOSTS) list --fleet demo | awk '$$1 == "demo1" {print "http://" $$2 "/"}'

.PHONY: demo-down
demo-down: ## remove every trace of the demo
	@$(HOSTS) down --all --fleet demo

# The table of times comes at the end, whether all has passed or not.
define run
@mkdir -p .cache; rm -f .cache/times
@ended=0; $(MAKE) --no-print-directory --jobs=$(JOBS) $(1:%=timed-%) || ended=$$?; \
	sort --key=2 --numeric-sort --reverse .cache/times | awk '{printf "%-18s %3d:%02d  %s\n", $$1, $$2 / 60, $$2 % 60, $$3}'; \
	printf '%-18s %3d:%02d\n' "all of it" $$((SECONDS / 60)) $$((SECONDS % 60)); exit $$ended
endef

.PHONY: check
check: $(VENV)/installed ## lint, unit, integration and the default scenario: while you work on a change
	$(call run,$(CHECKED))

.PHONY: test
test: $(VENV)/installed ## everything, which is check with every scenario and the judges: about an hour
	$(call run,$(PARTS))

timed-%:
	@ended=0; $(MAKE) --no-print-directory $* 2>&1 | (trap '' INT; sed --unbuffered 's/^/$*: /') || ended=$$?; \
		echo "$* $$SECONDS $$( ((ended)) && echo failed || echo passed )" >> .cache/times; exit $$ended

.PHONY: lint
lint: $(VENV)/installed ## yamllint, ansible-lint, ruff, mypy, and how root reaches files of apps
	yamllint --strict .
	ansible-lint -q --strict
	ruff check --quiet
	ruff format --check --quiet
	mypy --package ansible_collections.funnel.tornado.plugins
	mypy tools tests molecule roles files
	$(VENV)/bin/python -m tools.check_paths
	PYTHONPATH=.collections lint-imports --no-logo --no-cache

.PHONY: judges
judges: $(VENV)/installed .cache/judges/installed ## ansible-test, galaxy-importer and antsibull, on the built artefact
	@$(VENV)/bin/python -m tests.judges

.PHONY: unit
unit: $(VENV)/installed ## the logic, without a host
	pytest --quiet tests/unit

.PHONY: integration
integration: $(VENV)/installed ## the runner, the sample apps and this clone's own commands, on this machine
	@$(PYTHON) -m tools.packages openssl
	pytest tests/integration files

.PHONY: molecule
molecule: molecule-$(SCENARIO) ## provision booted hosts and prove them: make molecule SCENARIO=default

# Molecule removes the hosts after a failure, but not after Ctrl-C; its state would be in the user's home, and shared with
# every clone whose directory has the same name.
molecule-%: $(VENV)/installed
	@$(PYTHON) -m tools.packages chromium chromium-driver slowhttptest testssl.sh
	@trap '$(HOSTS) down --all --fleet molecule-$*; exit 130' INT TERM; \
		MOLECULE_EPHEMERAL_DIRECTORY=$(CURDIR)/.cache/molecule/$* molecule test --scenario-name $*

.PHONY: newest
newest: ## unit tests and the default scenario, with the newest ansible-core on the newest Python there is
	@[[ "$(NEWEST)" ]] || { echo "Python 3.12 or newer is needed, and there is neither a python3.13 nor a python3.12" >&2; exit 1; }
	@$(MAKE) --no-print-directory VENV=.cache/newest PYTHON=$(NEWEST) unit molecule

.PHONY: bench
bench: $(VENV)/installed ## how fast, next to plain ways of doing the same
	@$(PYTHON) -m tools.packages wrk
	@$(VENV)/bin/python -m tests.bench

.PHONY: docs
docs: $(VENV)/installed ## write the tables of keys and variables, and the page of modules and filters, from what these say of themselves
	@PYTHONPATH=.collections:. $(VENV)/bin/python tools/docs.py

.PHONY: lock
lock: $(VENV)/installed ## pin the tools anew: requirements-dev.in to requirements-dev.txt
	@uv pip compile --quiet --universal --python-version 3.11 --no-header --no-emit-index-url \
		requirements-dev.in --output-file requirements-dev.txt
	@uv pip compile --quiet --universal --python-version 3.11 --no-header --no-emit-index-url \
		requirements-judges.in --output-file requirements-judges.txt

# Debian's python3 comes without ensurepip.
$(VENV)/installed: requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		f"Python 3.11 or newer is needed, and $(PYTHON) is {sys.version.split()[0]}: make PYTHON=/path/to/another")'
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
