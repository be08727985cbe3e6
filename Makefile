# make boot: a running guest, from nothing.   make test: the tests, real boots included.
.DEFAULT_GOAL := help
.PHONY: help setup qemu gdb boot campaign test test-quick check bench newcomer clean

# Any that fits and can make virtual environments: python3 may be another one, which somebody has put before it in PATH
FITS := import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
CANDIDATES := python3 /usr/bin/python3 python3.13 python3.12 python3.11
PYTHON ?= $(shell for each in $(CANDIDATES); do $$each -c '$(FITS)' 2>&- && echo $$each && exit; done; echo python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
OS_RELEASE := /etc/os-release
# Tests wait for guests more than they compute; more than eight at once want much memory
WORKERS ?= $(shell n=$$(($$(nproc) * 2)); echo $$((n > 8 ? 8 : n)))

# $(call install,WHAT,PACKAGES): by apt, if we may. Package lists can be missing or old, so a failure counts only with
# new ones
define install
[ ! -r $(OS_RELEASE) ] || . $(OS_RELEASE); \
if ! command -v apt-get >/dev/null; then \
  echo "error: $(1) is missing, and this is $${PRETTY_NAME:-a system} without apt." \
    "Install it, or run Topcoat on Debian 12 or 13, or in a container of one" >&2; exit 1; \
elif [ "$$(id -u)" != 0 ]; then \
  echo "error: $(1) is missing. As root: apt-get update && apt-get install --no-install-recommends $(2)" >&2; exit 1; \
fi; \
echo "installing $(1)"; \
export DEBIAN_FRONTEND=noninteractive; \
try() { apt-get install -y --no-install-recommends $(2) 2>&1; }; \
said=$$(try) || said=$$(apt-get update -q 2>&1; try) || { \
  echo "error: apt cannot install $(1): $(2). It said at last:" >&2; \
  echo "$$said" | tail -n 8 | sed 's/^/  | /' >&2; exit 1; }
endef

help:
	@echo "make boot    set up, prepare, and boot a guest named i0"
	@echo "make campaign  fuzz all of the demo's targets, each for a minute or two, in two guests; report"
	@echo "make test    set up and run all tests"
	@echo "make test-quick  those that boot no guest and run no whole program"
	@echo "make check   ruff, mypy, and the floors of the layout"
	@echo "make bench   compare a boot with the bare QEMU command"
	@echo "make newcomer  make boot and make test in fresh, minimal Debian 12 and 13 (as root)"
	@echo "make setup   only make .venv"
	@echo "make clean   stop all guests; delete .venv and what of out/ can be made again"

setup: $(VENV)/.complete

# Done last, so that an interrupted setup is begun anew
$(VENV)/.complete: pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	  { echo "error: Topcoat needs Python 3.11 to 3.13; say which: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { $(call install,what $(PYTHON) makes virtual environments with,python3-venv); }
	@echo "setting up $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(PIP) --require-hashes --only-binary :all: -r requirements.txt
	@$(PIP) --no-index --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q pipeline tasks
	@touch $@

# Only the Linux guest needs the host's QEMU; Fuchsia builds bring their own
qemu:
	@if [ -z "$${TOPCOAT_TARGETS:-}" ] && [ -n "$${FUCHSIA_DIR:-}$${FUCHSIA_RESOURCES_DIR+set}" ]; then exit 0; fi; \
	if command -v qemu-system-x86_64 >/dev/null && command -v qemu-img >/dev/null; then exit 0; fi; \
	$(call install,QEMU,qemu-system-x86 qemu-utils)

# With it, tests look into a guest; without it, they are skipped and say so
gdb:
	@if command -v gdb >/dev/null && command -v gdbserver >/dev/null || [ "$$(id -u)" != 0 ]; then exit 0; fi; \
	( $(call install,gdb,gdb gdbserver) ) || echo "tests that need gdb are skipped" >&2

boot: setup qemu
	@$(BIN)/luigi --module tasks BootInstance

# Killed at any moment, the same command goes on
campaign: setup qemu
	@$(BIN)/luigi --module tasks CampaignReport --file docs/demo-campaign.toml --workers 2

# What needs no guest and runs no whole program: in a minute or two
test-quick: setup qemu
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not real and not slow"

test: setup qemu gdb
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache >$(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }

bench: setup qemu
	@$(BIN)/python bench/boot_overhead.py

# In minimal systems of each release, as root. RELEASES, TESTS, NEWCOMER_DIR: see the script
newcomer:
	@tests/newcomer.sh $(RELEASES)

# Nothing makes corpora, campaigns and logs again
clean:
	@if [ -x $(BIN)/topcoat ]; then $(BIN)/topcoat stop --all && $(BIN)/topcoat clean --yes; fi
	@rm -rf $(VENV)
	@if [ -d out ]; then echo "kept: what is left in out/; to delete that too, corpora and all: rm -r out"; fi
