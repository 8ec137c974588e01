# The commands of this project. Paths are relative to this folder, whose name may contain spaces.
#   make demo     set up, run the whole workflow on generated images, and print the report's path
#   make check    check the sources and run the fast unit tests, which takes three minutes on two cores; run this before each commit
#   make test     set up, check the sources and run all tests
#   make lint     only check the sources
#   make setup    only install the workflow, so that .venv/bin/snakemake exists
#   make watch    show a sweep in the terminal [CONFIG=file] [SWEEP=name]
#   make detach   end the Snakemake of this folder, and leave its jobs to Slurm; the same Snakemake command follows them again
#   make new-sweep NAME=mine [LIKE=images|tabular|xgboost|lightning|function|distributed]    create a new sweep from a complete example
#   make faults   kill parts of sweeps at random moments, and write docs/faults.md [SEED=n]
#   make test-versions  run a part of the tests with the lowest and the newest versions of Ray and torch, and write docs/versions.md [ONLY=words]
#   make bench    measure the numbers of the README, for this workflow and for the tools in the comparison [ONLY=words] [ROUNDS=n] [DATA=folder]
#   make docs     build the documents as a web site in resources/docs
#   make lock     update the lock files of the requirements [UPGRADE=1]
#   make clean    remove the files that the set-up and the tests made
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: setup demo new-sweep check test test-versions lint docs faults bench lock watch detach clean env-test
# The Python of the set-up must not import packages from another environment that is active in the user's shell.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV

PYTHON ?= python3
ENVS := workflow/envs
UV_COMPILE := .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header
DEV := resources/env-test/venv/bin
# tests/conftest.py gives the tests to the worker processes. Two of three workers have the tests on Slurm, which mostly wait, so two cores are enough.
PYTEST := $(DEV)/python -m pytest --dist loadscope --no-loadscope-reorder --numprocesses
SOURCES := workflow/scripts tests benchmarks examples docs
SNAKEFILES := Snakefile workflow/Snakefile workflow/rules

setup: .venv/.complete

# The set-up compiles the packages, because the first dry run would otherwise take two seconds longer. The file .complete is written last, so that the next
# `make setup` after an interrupted set-up begins again. The file contains the path of this folder, because a virtualenv does not work after a move.
ifneq ($(shell cat .venv/.complete 2>/dev/null),$(CURDIR))
.PHONY: .venv/.complete
endif
.venv/.complete: $(ENVS)/controller.txt
	@version=$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) \
	  || { echo 'Error: $(PYTHON) does not run. Name a Python 3.11 or newer: make setup PYTHON=python3.12' >&2; exit 1; }; \
	case $$version in 3.1[1-9]|3.[2-9]?) ;; *) \
	  echo "Error: $(PYTHON) is Python $$version. Name a Python 3.11 or newer: make setup PYTHON=python3.12" >&2; exit 1;; esac; \
	echo "Setting up .venv with Python $$version (120 MB to download) …"; \
	rm -rf .venv; \
	log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	"$(PYTHON)" -m venv .venv > "$$log" 2>&1 \
	  || { echo "Error: $(PYTHON) cannot make a virtualenv. On Debian and Ubuntu install python$$version-venv, or name another PYTHON." >&2; exit 1; }; \
	{ .venv/bin/python -m pip install --disable-pip-version-check --no-deps "$$(grep '^uv==' $<)" && \
	  .venv/bin/uv pip install --compile-bytecode --python .venv/bin/python --requirements $<; } > "$$log" 2>&1 \
	  || { echo "Error: the set-up could not install its packages; with the network at hand run it again." \
	            "$$(grep -iE '^ *(error|cause): ' "$$log" | tr -s '\n ' ' ')" >&2; exit 1; }; \
	pwd -P > $@

# .venv/bin is first on PATH, so that `python3` in the config is the Python of the set-up.
demo: setup
	@PATH="$$PWD/.venv/bin:$$PATH" .venv/bin/snakemake --cores all --configfile config/demo.yaml
	@echo "Report: $$PWD/results/demo/demo/report.html"

new-sweep: setup
	@.venv/bin/python workflow/scripts/new_sweep.py --name "$(NAME)" --like "$(or $(LIKE),images)"

# The workflow's own script builds the environment of the tests, so that the script is tested too. The script is fast if nothing has changed.
env-test: setup
	@.venv/bin/python workflow/scripts/build_env.py \
	  --python .venv/bin/python \
	  --requirements $(ENVS)/dev.in \
	  --output-dir resources/env-test \
	  --log logs/env-test.log

# Python programs are started with `$(DEV)/python`. The first line of each program in a virtualenv contains the path
# of Python, so that the program would not start after a move of the folder.
lint: env-test
	$(DEV)/ruff format --check $(SOURCES)
	$(DEV)/ruff check $(SOURCES)
	$(DEV)/python -m snakefmt --check $(SNAKEFILES)
	$(DEV)/python -m mypy
	PYTHONPATH=workflow/scripts $(DEV)/python $(DEV)/lint-imports --no-cache --no-logo

check: lint
	$(PYTEST) 2 -m "not slow" tests/unit

test: lint
	$(PYTEST) 3

# The documents are built in a separate environment without torch. A broken link is an error.
docs: setup
	@.venv/bin/python workflow/scripts/build_env.py \
	  --python .venv/bin/python \
	  --requirements $(ENVS)/docs.in \
	  --output-dir resources/env-docs \
	  --log logs/env-docs.log
	@resources/env-docs/venv/bin/python -m sphinx --quiet --fail-on-warning --conf-dir docs . resources/docs
	@echo "Documents: $$PWD/resources/docs/docs/index.html"

faults: env-test
	@PYTHONPATH=workflow/scripts:tests $(DEV)/python tests/faults.py $(if $(SEED),--seed "$(SEED)")

test-versions: env-test
	@PYTHONPATH=workflow/scripts:tests $(DEV)/python tests/versions.py $(if $(ONLY),--only "$(ONLY)")

bench: env-test
	@PYTHONPATH=workflow/scripts:tests $(DEV)/python benchmarks/bench.py --resources-dir resources/bench \
	  $(if $(ONLY),--only "$(ONLY)") $(if $(ROUNDS),--rounds "$(ROUNDS)") $(if $(DATA),--data-dir "$(DATA)")

# The lock `lowest` has the lowest versions that node.in allows. Of numpy and pyyaml, the packages of the controller need newer versions.
lock: setup
	@for name in $(ENVS)/controller $(ENVS)/node $(ENVS)/dashboard $(ENVS)/docs $(ENVS)/dev $(ENVS)/trackers $(ENVS)/samplers $(basename $(wildcard examples/*/requirements.in)) $(ENVS)/newest; do \
	  $(UV_COMPILE) $(if $(UPGRADE),--upgrade) $$name.in --output-file $$name.txt || exit 1; \
	done
	@$(UV_COMPILE) --constraints <(sed -nE '/^(numpy|pyyaml)/d; s/^([a-z]+)(\[[a-z]+\])?>=([0-9.]+).*/\1==\3.*/p' $(ENVS)/node.in) \
	  $(if $(UPGRADE),--upgrade) $(ENVS)/lowest.in --output-file $(ENVS)/lowest.txt

watch: setup
	@.venv/bin/python workflow/scripts/watch.py $(if $(CONFIG),--configfile "$(CONFIG)") $(if $(SWEEP),--sweep "$(SWEEP)")

detach: setup
	@.venv/bin/python workflow/scripts/detach.py

# `make clean` keeps state/ and results/, because making these folders again takes much time on a cluster.
clean:
	rm -rf .venv resources/env resources/env-test resources/env-lowest resources/env-newest resources/env-docs resources/docs resources/slurm-packages* resources/test-wheels .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.*
