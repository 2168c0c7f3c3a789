# Two commands do all the set-up on a machine that has git, make and Python 3.11 or newer:
#   make demo                                   the main job, end to end (VIDEOS=folder LABELLED=folder for your own)
#   make test                                   every test
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The lock pins every package with its hash for Linux x86-64 and Python 3.11; elsewhere the ranges of pyproject.toml hold.
LOCKED := $(shell $(PYTHON) -c 'import sys, platform; print(int(sys.version_info[:2] == (3, 11) and sys.platform == "linux" and platform.machine() == "x86_64"))' 2>/dev/null)

.PHONY: help demo test bench lint lock clean
help:
	@echo "make demo [VIDEOS=folder] [LABELLED=folder] [OUT=folder]   the main job, end to end, with a report"
	@echo "make test                                                  every test"
	@echo "make bench                                                 the benchmarks, and which bars fall short"
	@echo "make lint                                                  style checks"

demo: $(VENV)/ready
	$(BIN)/headcam demo $(if $(VIDEOS),--videos $(VIDEOS)) $(if $(LABELLED),--labelled $(LABELLED)) --out $(or $(OUT),demo) \
	  || [ $$? -eq 1 ]  # 1: done, but something was skipped, which the report lists

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist loadgroup

bench: $(VENV)/ready
	$(BIN)/python benchmarks/all.py

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "headcam: $(PYTHON) is missing or older than 3.11. Fix: install Python 3.11 or newer, or say make PYTHON=path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
ifeq ($(LOCKED),1)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
else
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
endif
	@touch $@

# Needs `pip install uv`. Pins the newest versions inside the ranges, except for the constraints given there.
lock:
	uv pip compile pyproject.toml --extra dev --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	  --no-emit-index-url --no-header --no-annotate --constraints constraints.txt -o requirements.lock

clean:
	rm -rf $(VENV)
