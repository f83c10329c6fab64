# Everything starts here. Needs Python 3.11 and make; no root, no display, no GPU, and no network once installed.
SHELL := /bin/bash
PYTHON := .venv/bin/python
INSTALLED := .venv/.installed
# A training step allocates and frees large buffers; huge pages (glibc, ignored elsewhere) spare most of their page faults.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
# dm_control reads MUJOCO_GL when it is imported; where no OpenGL works, one line says so and the rest goes on.
WITH_GL = MUJOCO_GL="$$($(PYTHON) -m experiments.opengl)"

.DEFAULT_GOAL := help
.PHONY: help demo demo-long test test-all lint

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | while IFS=$$'\t' read -r name what; do printf '  make %-9s %s\n' "$$name" "$$what"; done

demo: $(INSTALLED)  ## record, train, close the loop and report: runs/demo/report.html
	@$(WITH_GL) $(PYTHON) -m experiments.demo

demo-long: $(INSTALLED)  ## all tasks, text and pictures, three seeds, every baseline, 83 minutes: runs/demo_long/report.html
	@$(WITH_GL) $(PYTHON) -m experiments.demo_long

test: $(INSTALLED)  ## the tests, every stage of the demo among them
	@$(WITH_GL) $(PYTHON) -m pytest

test-all: $(INSTALLED)  ## the same and the long ones, which train a model a task
	@$(WITH_GL) $(PYTHON) -m pytest -m "long or not long"

lint: $(INSTALLED)  ## ruff: rules and format
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .

# Both a fresh clone and a changed requirements.txt come through here; the stamp is written last, so a failed install is retried.
$(INSTALLED): requirements.txt
	@python="$$(for name in python3.11 python3; do \
		"$$name" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && command -v "$$name" && break; \
	done)"; \
	if [ -z "$$python" ]; then \
		echo "python3.11 not found: install Python 3.11 (Debian: apt install python3.11 python3.11-venv) and run make again" >&2; exit 1; \
	fi; \
	if ! "$$python" -c 'import venv, ensurepip' 2>/dev/null; then \
		echo "$$python has no venv module: install it (Debian: apt install python3.11-venv) and run make again" >&2; exit 1; \
	fi; \
	test -x $(PYTHON) || "$$python" -m venv .venv || exit 1; \
	echo "installing requirements.txt into .venv"; \
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.txt \
		|| { echo "pip could not install requirements.txt (its message is above): mend the network or the pin and run make again" >&2; exit 1; }
	@touch $@
