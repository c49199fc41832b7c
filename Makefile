# make quickstart   from nothing to a classified picture, on the CIFAR-10 sample in data/sample
# make test         lint, types and tests
#
# Both create .venv first; both are quick when repeated. On Linux pip's torch brings its CUDA libraries (about 5 GB).
# For a machine without a GPU: make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
DEVICE ?= auto
VENV := .venv
BIN := $(VENV)/bin
SAMPLE := data/sample
PICTURES = $(foreach class,$(wildcard $(SAMPLE)/test/*),$(firstword $(sort $(wildcard $(class)/*.png))))
SOURCES := pyproject.toml deploy/pyproject.toml

.PHONY: quickstart test install clean

quickstart: $(VENV)/.installed
	@rm -rf runs/quickstart
	$(BIN)/imgcls train --train $(SAMPLE)/train --test $(SAMPLE)/test --epochs 40 --batch-size 32 --device $(DEVICE) \
	  --output models/quickstart.pth --run-dir runs/quickstart
	$(BIN)/imgcls export models/quickstart.pth --format onnx
	$(BIN)/imgcls export models/quickstart.pth --format torchscript
	$(BIN)/imgcls verify models/quickstart.pth models/quickstart.onnx models/quickstart.pt --data $(SAMPLE)/test
	$(BIN)/imgcls-infer --model models/quickstart.onnx --top-k 3 $(PICTURES)

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

install: $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	$(if $(TORCH_INDEX),$(BIN)/pip install torch torchvision --index-url $(TORCH_INDEX))
	$(BIN)/pip install --progress-bar on -e ./deploy -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install -e ./deploy -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV)
