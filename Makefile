# Every task of the project. People, hooks and CI use the same ones.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
PIP_AUDIT := pip-audit==2.10.1
export PATH := $(CURDIR)/$(BIN):$(PATH)

CORE := data models evaluation tracking registry stages flows cli
ROOMS := $(patsubst pipeline/%/room.py,%,$(wildcard pipeline/*/room.py))

EXTRAS := notices review scale serving team
PYTEST := pytest --dist loadgroup -n
LOCK_FLAGS := --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock"

.DEFAULT_GOAL := help
.DELETE_ON_ERROR: # half an environment would look like a whole one
.PHONY: help setup extras run tiny report retrain release-notes test test-fast test-faults lint docs lines audit outdated new ui \
  bench lock clean

help: ## list every task
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.dev ## create .venv with everything the tasks below need

extras: $(VENV)/.extras ## add the packages of searches, Dask, the review of labels, serving, notices and a team

run: $(VENV)/.run ## ingest, validate, split, train, evaluate and register, on real Fashion-MNIST
	@pipeline run

tiny: $(VENV)/.run ## the whole pipeline on generated images, in a clone of the last commit in .pipeline/tiny
	@rm -rf .pipeline/tiny && git clone --quiet . .pipeline/tiny
	@cd .pipeline/tiny && sed -i.before 's/^  name: [^ ]*/  name: tiny/' params.yaml && python -m pipeline.cli run

report: $(VENV)/.run ## report.md: what this checkout changes against AGAINST=origin/main
	@pipeline report --against "$(or $(AGAINST),origin/main)" --md --output report.md

retrain: $(VENV)/.run ## take in new batches, train, apply the champion rule and push the branch, as a schedule does
	@pipeline retrain

release-notes: ## print the changes of TAG=v1.2.3 from CHANGELOG.md
	@python3 .ci/release_notes.py "$(TAG)"

test-fast: $(VENV)/.dev ## the unit tests of the core and the rooms: no tool is started
	@$(PYTEST) 2 tests/unit $(wildcard tests/*/unit)

test: $(VENV)/.dev ## the test suite (ten minutes on two cores)
	@$(PYTEST) 2 -m "not faults"

test-faults: $(VENV)/.dev ## kills, full disks, servers, the browser, the README on real data (half an hour)
	@# Three at a time, because they wait a lot, and in their order, because the longest are the first.
	@$(PYTEST) 3 --no-loadscope-reorder -m faults

lint: $(VENV)/.dev ## style, types and the direction of imports
	@ruff check . && ruff check --quiet --preview --select PLC2701 . && ruff format --check . && mypy && lint-imports

docs: $(VENV)/.dev ## build the documentation's site in site/; a broken link or anchor is an error
	@NO_MKDOCS_2_WARNING=1 mkdocs build --strict
	@echo "open site/index.html"

lines: ## count the lines of each package: ground, core, rooms, tests
	@count() { printf '%7d  %s\n' "$$(find $$2 $$3 -name '*.py' -exec cat {} + | wc -l)" "$$1"; }; \
	count ground pipeline '-maxdepth 1'; \
	for package in $(CORE); do count $$package pipeline/$$package; done; count core 'pipeline $(CORE:%=pipeline/%)' '-maxdepth 1'; \
	for package in $(ROOMS); do count $$package pipeline/$$package; done; count pipeline pipeline; count tests tests

audit: $(VENV)/bin/python ## look up published vulnerabilities of the locked packages (needs a network)
	@uv tool run --python $(BIN)/python $(PIP_AUDIT) --requirement requirements-extras.lock --require-hashes --disable-pip \
	  --strict --progress-spinner off $(AUDIT_FLAGS) $$($(ACCEPTED))

outdated: $(VENV)/.dev ## try the newest versions of all packages in a copy, and report what breaks (needs a network)
	@python tools/outdated.py $(if $(MD),--md "$(MD)")

new: $(VENV)/.run ## create a project from this one: NAME=parts [DIRECTORY=../parts] [WITHOUT=servers,notices]
	@pipeline new $(if $(NAME),"$(NAME)",--help) $(if $(DIRECTORY),"$(DIRECTORY)") $(if $(WITHOUT),--without "$(WITHOUT)")

ui: $(VENV)/.run ## MLflow's pages: runs, charts, the registry
	@pipeline ui

bench: $(VENV)/.dev ## measure time, memory and accuracy, and write them to benchmarks/ (hours)
	@python benchmarks/end_to_end.py
	@python benchmarks/decisions.py
	@python benchmarks/training.py
	@python benchmarks/operations.py

lock: $(VENV)/bin/python ## resolve the versions anew, within pyproject.toml and pins.txt
	@uv pip compile pyproject.toml -c pins.txt --upgrade $(LOCK_FLAGS) -o requirements.lock
	@uv pip compile pyproject.toml $(EXTRAS:%=--extra %) -c requirements.lock --upgrade $(LOCK_FLAGS) -o requirements-extras.lock
	@uv pip compile pyproject.toml --extra dev -c requirements-extras.lock --upgrade $(LOCK_FLAGS) -o requirements-dev.lock
	@# Of the images of rooms: docker/requirements-NAME.in becomes requirements-NAME.lock.
	@for file in $(wildcard docker/requirements-*.in); do \
	  uv pip compile $$file -c requirements-extras.lock $(LOCK_FLAGS) -o $$(basename $$file .in).lock || exit 1; done

clean: ## remove the environment and the tools' caches; data, models, runs and DVC's cache stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -not -path './.dvc/*' -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@git rev-parse --git-dir > /dev/null 2>&1 || { echo "$(CURDIR) is not a git repository, and DVC works on commits." \
	  "In an unpacked archive: git init && git add . && git commit -m 'Start from the archive'"; exit 1; }
	@git config --get user.email > /dev/null || echo "git has no author yet, which commits and experiments need:" \
	  "git config --global user.name 'YOUR NAME' && git config --global user.email YOU@EXAMPLE.COM"
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	  f"Python 3.11 to 3.13 is needed, {v.major}.{v.minor} was found: make $(MAKECMDGOALS) PYTHON=python3.11")'
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@command -v uv > /dev/null || $(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

$(VENV)/.run: requirements.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing the locked packages (once; a minute or two)"
	@$(INSTALL) -r requirements.lock
	@$(INSTALL_PROJECT)
	@touch $@

$(VENV)/.extras: requirements-extras.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing the locked packages and those of the extras (once; a minute or two)"
	@$(INSTALL) -r requirements-extras.lock
	@$(INSTALL_PROJECT)
	@touch $@ $(VENV)/.run

$(VENV)/.dev: requirements-dev.lock pyproject.toml | $(VENV)/bin/python
	@echo "installing the locked packages and the development tools (once; a minute or two)"
	@$(INSTALL) -r requirements-dev.lock
	@$(INSTALL_PROJECT)
	@touch $@ $(VENV)/.run $(VENV)/.extras

# Bytecode is compiled here because importing TensorFlow without it takes twice as long.
INSTALL := uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode
INSTALL_PROJECT := uv pip install --quiet --python $(BIN)/python --no-deps --editable .

# Findings that are accepted until a day that has not passed. With --strict, a package that cannot be looked up is an error.
ACCEPTED := awk -F '"' -v today=$$(date +%F) '/^id/ {id = $$2} /^until/ && $$2 >= today {print "--ignore-vuln", id}' \
  audit-accepted.toml
