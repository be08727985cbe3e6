# make boot: a running guest, from nothing.   make test: the tests, real boots included.
.DEFAULT_GOAL := help
.PHONY: help setup qemu boot campaign test check bench clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QEMU_PACKAGES := qemu-system-x86 qemu-utils
INSTALL_QEMU := apt-get install -y --no-install-recommends $(QEMU_PACKAGES)

help:
	@echo "make boot    set up, prepare, and boot a guest named i0"
	@echo "make campaign  fuzz all of the demo guest's fuzzers, each for a minute or two, in two guests"
	@echo "make test    set up and run all tests"
	@echo "make check   ruff and mypy"
	@echo "make bench   compare a boot with the bare QEMU command"
	@echo "make setup   only make .venv"
	@echo "make clean   stop all guests of this directory; remove .venv and out/"

setup: $(VENV)/.complete

# Done last, so that an interrupted setup is begun anew
$(VENV)/.complete: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "error: Topcoat needs Python 3.11 to 3.13; say which: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "error: $(PYTHON) cannot make virtual environments; as root: apt-get install python3-venv" >&2; exit 1; }
	@echo "setting up $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m compileall -q pipeline tasks
	@touch $@

# Only the demo guest needs the host's QEMU; Fuchsia builds bring their own
qemu:
	@if [ -n "$${FUCHSIA_DIR:-}$${FUCHSIA_RESOURCES_DIR+set}" ]; then exit 0; fi; \
	if command -v qemu-system-x86_64 >/dev/null && command -v qemu-img >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing QEMU"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  $(INSTALL_QEMU) >/dev/null 2>&1 || { apt-get update -qq && $(INSTALL_QEMU) >/dev/null; }; \
	else \
	  echo "error: QEMU is missing. As root: apt-get install --no-install-recommends $(QEMU_PACKAGES)" >&2; exit 1; \
	fi

boot: setup qemu
	@$(BIN)/luigi --module tasks BootInstance

# Killed at any moment, the same command goes on
campaign: setup qemu
	@$(BIN)/luigi --module tasks FuzzCampaign --file docs/demo-campaign.toml --workers 2

test: setup qemu
	@$(BIN)/python -m pytest -n auto --dist worksteal

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: setup qemu
	@$(BIN)/python bench/boot_overhead.py

clean:
	@if [ -x $(BIN)/topcoat ]; then $(BIN)/topcoat stop --all; fi
	@rm -rf $(VENV) out
