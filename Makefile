# karat: every target can be run again; nothing is reinstalled unless pyproject.toml or constraints.txt changed.
PYTHON ?= python3
VENV ?= .venv
# An index with CPU builds of torch, for machines where the plain package brings CUDA: make TORCH_INDEX=<url> setup
TORCH_INDEX ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup coq-tools run test verify verify-slow coq accept-coq second-opinion claims rules fuzz lint format bench bench-guards study-gf16 study-optim study-shakespeare

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "karat needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 setup" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e ".[dev]"
	@touch $@

setup: $(READY)  ## create .venv with everything in it

coq-tools:  ## install Coq, which checks the theorems, where apt-get and root are there
	@if command -v coqc >/dev/null; then coqc --version; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  apt-get update -q && apt-get install -qy --no-install-recommends coq libcoq-flocq; \
	else echo "install Coq 8.16 or newer with Flocq: apt-get install coq libcoq-flocq, or opam install coq coq-flocq" >&2; exit 2; fi

run: $(READY)  ## train on real text under strict invariants and print the report
	$(BIN)/trainer run --strict-invariants
	$(BIN)/trainer report

test: $(READY)  ## run the tests
	$(BIN)/python -m pytest -n 2

verify: $(READY)  ## prove the catalogue: 0 all shown, 1 refuted or violated, 2 cannot judge
	$(BIN)/python -m karat.proofs.verify

verify-slow: $(READY)  ## the same with what takes minutes, and a second solver's opinion
	$(BIN)/python -m karat.proofs.verify --slow
	$(BIN)/python -m karat.proofs.second_opinion
	$(BIN)/python -m karat.proofs.theorems --recheck

coq: $(READY)  ## check the theorems in Coq: 0 all proved, 1 refuted or vacuous, 2 cannot judge, or no Coq
	$(BIN)/python -m karat.proofs.theorems

accept-coq: $(READY)  ## show what the Coq statements of ID say now, and pin them: make accept-coq ID=INV-4
	$(BIN)/python -m karat.proofs.theorems --accept "$(or $(ID),$(error which invariant? make accept-coq ID=INV-4))"

claims: $(READY)  ## decide every claim of the source documents and write docs/claims.md
	$(BIN)/python -m karat.proofs.claims --write docs/claims.md

rules: $(READY)  ## write the pages of the RUN family, docs/rules/, from its records
	$(BIN)/python -m karat.invariants.run.pages --write docs/rules

second-opinion: $(READY)  ## ask cvc5 every query that Z3 was asked: 0 nothing contradicted, 2 a contradiction
	$(BIN)/python -m karat.proofs.second_opinion

fuzz: $(READY)  ## fuzz formulas and guards for longer
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest -n 2 -m "not slow" tests/core tests/invariants

lint: $(READY)  ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## the figures of benchmarks/: ratios in one run
	$(BIN)/python benchmarks/step_rate.py
	$(BIN)/python benchmarks/guard_overhead.py
	$(BIN)/python benchmarks/verify_time.py
	$(BIN)/python benchmarks/guard_cost.py
	$(BIN)/python benchmarks/checkpoint_stall.py

bench-guards: $(READY)  ## which silent bugs the guards catch, and what they say of clean runs
	$(BIN)/python benchmarks/guard_detection.py

study-gf16: $(READY)  ## what GF16 costs in bits per byte, by width, with confidence intervals (resumable)
	$(BIN)/python benchmarks/study_gf16.py

study-optim: $(READY)  ## AdamW, Lion and Muon at equal steps and at equal time, each at its best rate (resumable)
	$(BIN)/python benchmarks/study_optim.py

study-shakespeare: $(READY)  ## bits per byte at 15 and at 45 minutes, three seeds, and the victory gate (resumable)
	$(BIN)/python benchmarks/study_shakespeare.py
