# make quickstart   from nothing to a classified picture, on the CIFAR-10 sample in data/sample
# make test         lint, types and tests
# make docs         writes docs/cli.md anew, and builds the pages as a site into site/
# make recording    records docs/quickstart.svg anew
# make web          the browser page as static files in dist/web (WEB_MODEL=models/mine.onnx); needs npm
# make test-minimum the tests with the lowest versions of all dependencies, in environments of their own
#
# All but the last two use .venv and create it first; they are quick when repeated. On Linux pip's torch brings its CUDA libraries (about 5 GB).
# For a machine without a GPU: make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
DEVICE ?= auto
VENV := .venv
BIN := $(VENV)/bin
SAMPLE := data/sample
PICTURES = $(foreach class,$(wildcard $(SAMPLE)/test/*),$(firstword $(sort $(wildcard $(class)/*.png))))
SOURCES := pyproject.toml deploy/pyproject.toml

MINIMUM := $(VENV)-minimum
PYTHON310 ?= python3.10
MINIMUM_TESTS ?= tests/toolchain

# Where this is set, as in many containers, each of the processes that the tests start compiles the packages anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart test docs recording test-minimum test-minimum-toolchain test-minimum-predictor install clean

quickstart: $(VENV)/.installed
	@rm -rf runs/quickstart runs/quickstart-lite0
	$(BIN)/imgcls train --train $(SAMPLE)/train --test $(SAMPLE)/test --epochs 40 --batch-size 32 --device $(DEVICE) \
	  --output models/quickstart.pth --run-dir runs/quickstart
	$(BIN)/imgcls train --train $(SAMPLE)/train --test $(SAMPLE)/test --arch efficientnet_lite0 --pretrained --freeze \
	  --image-size 128 --device $(DEVICE) --output models/quickstart-lite0.pth --run-dir runs/quickstart-lite0
	$(BIN)/imgcls export models/quickstart.pth --format onnx
	$(BIN)/imgcls export models/quickstart.pth --format torchscript
	$(BIN)/imgcls export models/quickstart-lite0.pth --format onnx
	$(BIN)/imgcls verify models/quickstart.pth models/quickstart.onnx models/quickstart.pt --data $(SAMPLE)/test
	$(BIN)/imgcls-infer --model models/quickstart-lite0.onnx --top-k 3 $(PICTURES)
	$(BIN)/imgcls eval models/quickstart.pth --against models/quickstart-lite0.pth --data $(SAMPLE)/test

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/generate_cli.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html, or with search: python3 -m http.server --directory site"

recording: $(VENV)/.installed-dev
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python docs/record.py

test-minimum: test-minimum-predictor test-minimum-toolchain

test-minimum-toolchain: $(MINIMUM)/toolchain/.installed
	$(MINIMUM)/toolchain/bin/pip list
	$(MINIMUM)/toolchain/bin/pytest $(MINIMUM_TESTS)

test-minimum-predictor:
	@if $(PYTHON310) -c '' 2>/dev/null; then $(MAKE) $(MINIMUM)/predictor/.installed && \
	  $(MINIMUM)/predictor/bin/pip list && $(MINIMUM)/predictor/bin/pytest tests/infer; \
	else echo "skipped: the predictor on Python 3.10, which is not here as $(PYTHON310); name it: make PYTHON310=..."; fi

install: $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	$(if $(TORCH_INDEX),$(BIN)/pip install torch torchvision --index-url $(TORCH_INDEX))
	$(BIN)/pip install --progress-bar on -e ./deploy -e '.[lite]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install -e ./deploy -e '.[dev]'
	@touch $@

$(MINIMUM)/toolchain/.installed: $(SOURCES) tests/minimum_versions.py | $(BIN)/python
	rm -rf $(@D)
	$(BIN)/python -m venv $(@D)
	$(BIN)/python tests/minimum_versions.py $(SOURCES) > $(@D)/constraints.txt
	$(@D)/bin/pip install --constraint $(@D)/constraints.txt -e ./deploy -e '.[dev]'
	@touch $@

$(MINIMUM)/predictor/.installed: $(SOURCES) tests/minimum_versions.py | $(BIN)/python
	rm -rf $(@D)
	$(PYTHON310) -m venv $(@D)
	$(BIN)/python tests/minimum_versions.py deploy/pyproject.toml > $(@D)/constraints.txt
	$(@D)/bin/pip install --constraint $(@D)/constraints.txt -e ./deploy onnx pytest pytest-xdist hypothesis
	@touch $@

clean:
	rm -rf $(VENV) $(MINIMUM)

WEB := dist/web
WEB_MODEL ?= deploy/imgcls_infer/models/cifar10-cnn.onnx

.PHONY: web
web: deploy/edge/web/node_modules/.package-lock.json
	@rm -rf $(WEB) && mkdir -p $(WEB)/vendor
	@cp $(addprefix deploy/edge/web/,index.html style.css icon.svg) deploy/edge/web/*.js $(WEB)
	@cp $(addprefix deploy/edge/web/node_modules/onnxruntime-web/dist/,ort.wasm.min.mjs ort-wasm-simd-threaded.mjs \
	  ort-wasm-simd-threaded.wasm) $(WEB)/vendor
	@cp $(WEB_MODEL) $(WEB)/model.onnx
	@echo "serve it: python3 -m http.server --directory $(WEB)"

deploy/edge/web/node_modules/.package-lock.json: deploy/edge/web/package-lock.json
	cd deploy/edge/web && npm ci --ignore-scripts --no-audit --no-fund
	@touch $@
