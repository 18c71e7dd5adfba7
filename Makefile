# make book    everything from a fresh clone to a book in _docs/
# make test    everything from a fresh clone to a tested course
# make clean   forget executed chapters and pages, keep the environment
#
# Both need Python 3.10 or newer, git and make. They keep their environment in .venv/ and come back to it the next time.
#   make book PROFILE=colab       the sizes for one GPU instead of the small ones
#   make test PYTHON=python3.12   another Python
#   make test CONSTRAINTS=        the newest versions of all packages instead of the ones in constraints.txt

PYTHON ?= python3
PROFILE ?= smoke
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2

BIN := .venv/bin
STAMP := .venv/.semseg-course
# Threads that wait without spinning: on a shared machine spinning ones can slow a run down many times.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0
export OMP_NUM_THREADS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)

.PHONY: help book test env clean
.DEFAULT_GOAL := help

help:
	@sed -n '/^# make/s/^# //p' Makefile

env: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else \
	  f"Python 3.10 or newer is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=/path/to/python3.12")'
	@echo "== Environment: .venv/ (several minutes the first time; torch is large)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo "Python's venv module is incomplete here. On Debian or Ubuntu: apt install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[nbs,dev]"
	@touch $(STAMP)

book: $(STAMP)
	@echo "== Chapters: executing what changed, in the profile $(PROFILE)"
	@failed=0; names=$$($(BIN)/python tools/make_book.py --profile $(PROFILE) --list-stale) || exit 1; \
	 if [ -n "$$names" ]; then $(BIN)/semseg-course chapters --profile $(PROFILE) $$names || failed=1; \
	 else echo "nothing changed since the last run"; fi; \
	 echo "== Pages"; $(BIN)/python tools/make_book.py --profile $(PROFILE) || exit 1; exit $$failed

test: $(STAMP)
	@echo "== Tests: $(WORKERS) processes"
	@mkdir -p _runs; if OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --junitxml=_runs/tests.xml; \
	 then echo "All tests passed; the report: file://$(CURDIR)/_runs/tests.xml"; \
	 else echo "Some tests failed: see the lines above that begin with FAILED or ERROR"; exit 1; fi

clean:
	rm -rf _runs _docs _proc
