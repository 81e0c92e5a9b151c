# make demo   the main job: original and pruned model side by side
# make bench  time of a build, and the demo's figures as JSON
# make paper  the paper's experiment, remade small: tables and reports in build/paper, 80 minutes
# make sparsity-paper  which language to calibrate sparsity with: three small models, tables in build/sparsity-paper; hours
# make check-sparsity  kprune sparsify held against llm-compressor
# make test   linters, types, tests: about 20 minutes on two cores, 2 GB and the servers' own memory
# make test-fast  the tests of a contributor's loop: no servers, no downloads, none that take long
# make check-v2  the guard in the V2 sampler of vLLM 0.31 to 0.33, interpreted: 10 minutes, downloads 240 MB once
# make audit  known vulnerabilities of what is pinned, bill of materials, reproducible wheel; make lock writes hashes anew
# make check-installs  the wheel in empty environments: PYTHONS="python3.11 python3.12", EXTRAS="compare plot"
# make fuzz   every reader with damaged input: TARGET=profile SECONDS=3600
# make docs   the documentation site in build/site, links and anchors checked; make docs-serve shows it
# All set up .venv first, once. PYTHON=... picks the interpreter, TORCH_INDEX=... an index for the CPU torch.

PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
# Named after the content of what it stands for: an edited lock file means a new setup, a second run does nothing.
STAMP := .venv/.kprune-setup-$(shell cat requirements/cpu.lock pyproject.toml packaging/vllm/pyproject.toml packaging/make_venv.py | cksum | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help setup demo paper sparsity-paper check-sparsity lint bench check-v2 audit lock check-installs fuzz docs docs-serve clean
.PHONY: test test-others test-checkpoint test-vocabulary test-compare test-serving test-rest test-fast test-fast-rooms test-fast-rest

help:
	@echo "make setup | demo | paper | sparsity-paper | test | test-fast | lint | bench | check-v2 | audit | lock | check-installs | fuzz | docs | docs-serve | clean   (variables: PYTHON, TORCH_INDEX)"

setup: $(STAMP)
	@echo "setup: .venv is ready"

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "make setup: needs Python 3.11 or newer; PYTHON=$(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo not found). Try: make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) packaging/make_venv.py --stamp $(STAMP) --torch-index "$(TORCH_INDEX)"

demo: $(STAMP)
	@$(BIN)/kprune demo -o build/demo

# KPRUNE_DATA=FOLDER adds real text; PAPER=... takes options of the script.
paper: $(STAMP) $(BIN)/lm_eval
	@$(BIN)/python benchmarks/paper.py $(PAPER)

# KPRUNE_DATA=FOLDER names the texts; SPARSITY_PAPER=... takes options of the script (--tables, --models, --threads).
sparsity-paper: $(STAMP)
	@$(BIN)/python benchmarks/sparsity_paper.py $(SPARSITY_PAPER)

# llm-compressor pins versions that vLLM's do not allow, so it has an environment of its own. CALIBRATION
# names a text: make check-sparsity CALIBRATION=ko=FILE
LLM_COMPRESSOR := llmcompressor==0.14.0.1
CALIBRATION ?= ko=$(KPRUNE_DATA)/calib-libreoffice-help/ko.txt.gz

check-sparsity: $(STAMP) .venv-llmcompressor/.kprune
	@$(BIN)/python benchmarks/check_sparsity.py --calibration $(CALIBRATION) $(SPARSITY)

.venv-llmcompressor/.kprune:
	@$(PYTHON) -m venv --clear .venv-llmcompressor
	@.venv-llmcompressor/bin/python -m pip --disable-pip-version-check install --quiet $$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements/cpu.lock) '$(LLM_COMPRESSOR)' $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
	@touch $@

# The lock file without hashes: with them, pip would want some for kprune itself.
CONSTRAINTS := build/constraints.txt

# What the suite `accuracy` needs, which nothing else does.
$(BIN)/lm_eval: | $(STAMP)
	@mkdir -p build && sed '/^ *--hash/d; s/ *\\$$//' requirements/cpu.lock > $(CONSTRAINTS)
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-build-isolation -c $(CONSTRAINTS) -e '.[accuracy]'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Several processes, each with its own summary: one alone grows beyond 2 GB, as torch, vLLM and large
# vocabularies add up. A failure of one does not stop the others. They are two chains that take about
# as long as each other, side by side; what the one with live servers prints comes when it ends.
CHECKPOINT_ROOMS := $(addprefix tests/,checkpoint cli)
VOCABULARY_ROOMS := $(addprefix tests/,tokenizer vocabulary)
COMPARE_ROOMS := $(addprefix tests/,compare heal prompt sparsify)
# Large inputs, beside which the other tests of their room would take more than 2 GB.
HOSTILE := tests/cli/test_hostile_input.py
NOT_HERE := $(addprefix --ignore=,$(CHECKPOINT_ROOMS) $(VOCABULARY_ROOMS))

test: $(STAMP)
	@$(MAKE) --no-print-directory -k -j2 --output-sync=target test-serving test-others

test-others: $(STAMP)
	@$(MAKE) --no-print-directory -k -j1 lint test-checkpoint test-vocabulary test-compare test-rest

test-checkpoint: $(STAMP)
	$(BIN)/python -m pytest $(CHECKPOINT_ROOMS) --ignore=$(HOSTILE)

test-vocabulary: $(STAMP)
	$(BIN)/python -m pytest $(VOCABULARY_ROOMS) $(HOSTILE)

test-compare: $(STAMP)
	$(BIN)/python -m pytest $(COMPARE_ROOMS)

test-serving: $(STAMP)
	$(BIN)/python -m pytest tests/serving

test-rest: $(STAMP)
	$(BIN)/python -m pytest tests $(NOT_HERE) $(addprefix --ignore=,$(COMPARE_ROOMS) tests/serving)

# Two processes side by side.
FAST := $(BIN)/python -m pytest -q -m "not server and not slow" --no-downloads

test-fast: $(STAMP)
	@$(MAKE) --no-print-directory -k -j2 --output-sync=target test-fast-rooms test-fast-rest

test-fast-rooms:
	$(FAST) $(CHECKPOINT_ROOMS) $(VOCABULARY_ROOMS) $(COMPARE_ROOMS)

test-fast-rest:
	$(FAST) tests $(NOT_HERE) $(addprefix --ignore=,$(COMPARE_ROOMS))

# Figures for the README: run it on an idle machine.
bench: $(STAMP)
	$(BIN)/python benchmarks/build_overlay.py
	$(BIN)/kprune demo -o build/demo --json build/demo.json

# Options of the script: CHECK_V2="0.33.0 --steps 200".
check-v2: $(STAMP)
	@$(BIN)/python packaging/check_v2.py $(CHECK_V2)

# What checks the supply chain has an environment of its own: it must not change what it checks.
AUDIT_STAMP := .venv-audit/.kprune-audit-$(shell cksum requirements/audit.lock | cut -d' ' -f1)

$(AUDIT_STAMP):
	@$(PYTHON) -m venv --clear .venv-audit
	@.venv-audit/bin/python -m pip --disable-pip-version-check install --quiet -r requirements/audit.lock
	@touch $@

audit: $(STAMP) $(AUDIT_STAMP)
	@$(BIN)/python packaging/audit.py

lock: $(AUDIT_STAMP)
	@.venv-audit/bin/python packaging/lock.py --uv .venv-audit/bin/uv

PYTHONS ?= python3.11 python3.12 python3.13
EXTRAS ?=

check-installs: $(STAMP) $(AUDIT_STAMP)
	@$(BIN)/python packaging/check_installs.py --uv .venv-audit/bin/uv $(addprefix --python ,$(PYTHONS)) $(addprefix --extra ,$(EXTRAS))

# The fuzzer is installed beside .venv, and found there; where it has no wheel, damaged copies are tried instead.
TARGET ?= all
SECONDS ?= 600
FUZZER := build/fuzzer

$(FUZZER): requirements/fuzz.lock
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --upgrade --no-deps --only-binary :all: --target $@ -r $< || \
		echo "make fuzz: no atheris for this Python; damaged copies of sound input are tried instead"
	@mkdir -p $@ && touch $@

fuzz: $(STAMP) $(FUZZER)
	@PYTHONPATH=$(FUZZER) $(BIN)/python packaging/fuzz.py --target $(TARGET) --seconds $(SECONDS)

# The generator has an environment of its own: it needs nothing of kprune's.
DOCS_STAMP := .venv-docs/.kprune-docs-$(shell cksum requirements/docs.lock | cut -d' ' -f1)

$(DOCS_STAMP):
	@$(PYTHON) -m venv --clear .venv-docs
	@.venv-docs/bin/python -m pip --disable-pip-version-check install --quiet -r requirements/docs.lock
	@touch $@

docs: $(DOCS_STAMP)
	@.venv-docs/bin/zensical build --clean --strict

docs-serve: $(DOCS_STAMP)
	@.venv-docs/bin/zensical serve

clean:
	rm -rf .venv .venv-audit .venv-docs .venv-llmcompressor build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
