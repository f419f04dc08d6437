# `make serve` and `make test` are all a fresh clone needs: each sets up what it uses.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup serve check test test-slow test-clients check-gosling check-deploy bench bench-cpu bench-gpu bench-peers docs gosling-eval gosling-train sanitize check-aarch64 clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py $(wildcard kernels/cpu/*.[ch])
	@echo "Installing Rookery, PyTorch and the rest into $(VENV): some minutes, once."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --quiet --upgrade "pip>=24"
	@$(BIN)/pip install --quiet --quiet --editable ".[test]"
	@touch $@

serve: setup
	$(BIN)/rookery serve $(ROOKERY_MODEL)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_imports.py

# A file's tests stay together, one worker a core: threads of their own would only wait for each other.
WORKERS ?= 2
test: setup
	tests/browser/install.sh
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
		-m "not gpu and not slow and not training and not deploy and not peers"

test-slow: setup
	$(BIN)/pytest -m slow

# two minutes of training the built-in model from nothing
check-gosling: setup
	$(BIN)/pytest -m training

# needs npm and packages from PyPI
test-clients: setup
	tests/clients/install.sh $(VENV)
	$(BIN)/pytest -m peers
	$(BIN)/python -m tests.clients.compat.run

# needs nginx, promtool (Debian: prometheus) and npm; no container engine
check-deploy: setup
	tests/deploy/check.sh $(VENV)
	$(BIN)/pytest -m deploy

bench: setup
	bench/run

# Rookery, the official package and llama.cpp in turn; BENCH="--quick" shows that all runs, bench/README.md has the rest
PEERS ?= build/peers
bench-cpu: setup
	bench/cpu/install-peers $(PEERS) || echo "llama.cpp could not be installed: it is left out"
	$(BIN)/python -m bench.cpu.run --peers $(PEERS) $(BENCH)

# On a machine with a GPU, for as long as it is lent: the gpu tests, then every figure, into build/gpu; again goes on with
# what is left. Needs no network; BENCH="--device cpu --tiny" shows that all of it runs.
bench-gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m bench.gpu.run $(BENCH)

# compiles llama.cpp, in a folder and an environment of its own
bench-peers:
	bench/cpu/install-peers $(PEERS)

# The native library's tests on a build that stops at the first wrong access or undefined operation.
sanitize: setup
	mkdir -p build
	$(CC) -std=gnu11 -O1 -g -ffp-contract=fast -fPIC -shared -pthread -Wno-psabi -fno-omit-frame-pointer \
		-fsanitize=address,undefined -fno-sanitize-recover=all kernels/cpu/*.c -lm -o build/native-sanitized.so
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 ROOKERY_CPU_LIBRARY=build/native-sanitized.so \
		$(BIN)/pytest tests/test_native_kernels.py tests/test_native_model.py tests/test_native_sample.py

# The native kernels for another processor, compiled and run here: Debian packages gcc-aarch64-linux-gnu and qemu-user.
check-aarch64: setup
	$(BIN)/python -m tests.aarch64.check

docs: setup
	$(BIN)/python -m rookery.server.reference > docs/reference.md

gosling-eval: setup
	$(BIN)/python -m rookery.models.gosling.evaluate

gosling-train: setup
	$(BIN)/python -m rookery.models.gosling.train --tokens 80e6 --out models/gosling/runs/main
	$(BIN)/python -m rookery.models.gosling.export models/gosling/runs/main/average.safetensors

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
