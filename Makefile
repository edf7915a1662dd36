PYTHON ?= python3
BIN := .venv/bin
# The package is this folder, whatever its name: type checking finds it under its import name through a link.
TYPES := .venv/types

.PHONY: demo test test-docs test-machines test-versions docs lint types install clean gpu-check gpu-chain device-check

demo: install
	$(BIN)/slimdeploy run digits --output runs/digits
	@echo "Results: runs/digits/table.json, runs/digits/bench.json, the networks beside them; curves: $(BIN)/tensorboard --logdir runs/digits"

test: install .venv/tensorrt-on-cpu lint types
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup

# The same tests as on CPUs of other kinds, on more threads and with other random examples: four times as long, for the night.
test-machines: install .venv/tensorrt-on-cpu
	$(BIN)/python tests/machines.py -n 2 --dist loadgroup

# What may depend on versions, with each of Python 3.10 to 3.13 and torch 2.13 and 2.15 that this machine can get.
test-versions:
	$(PYTHON) tests/versions.py

# Every command block of README and docs/, on a small input: CONTRIBUTING.md says how each is declared.
test-docs: install
	$(BIN)/python tests/docs_run.py

# The documentation as a site in build/site; a broken link or an unreadable docstring fails it.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

.venv/docs: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# TensorRT's parser and builder, which need no GPU: `slimdeploy export --trt-check`. Without, their tests are skipped.
.venv/tensorrt-on-cpu: .venv/installed
	-$(BIN)/pip install --quiet tensorrt-cu13-bindings==11.4.0.106
	-$(BIN)/pip install --quiet --no-deps onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0
	touch $@

# On a machine with an NVIDIA GPU. GPU_PYTHON: a Python that has what is to be measured (torch, tensorrt, …).
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
gpu-check:
	@$(GPU_PYTHON) -c "import slimdeploy.benchmarks" 2>/dev/null || \
	{ echo "gpu-check: $(GPU_PYTHON) has no slimdeploy: make install, or make gpu-check GPU_PYTHON=… (a Python that has it)" >&2; exit 2; }
	$(GPU_PYTHON) -m slimdeploy.benchmarks.gpu_check

# The reference table on a GPU that is available for minutes at a time, without network, in calls of nine minutes: docs/gpu.md.
# WORK: where the data lies and the checkpoints go; RESULTS: where the two JSON files go. CHAIN: more options.
WORK ?= build/gpu-chain
RESULTS ?= $(WORK)/results
gpu-chain:
	@mkdir -p build/import && ln -sfn "$(CURDIR)" build/import/slimdeploy
	PYTHONPATH="$(abspath $(WORK))/site:$(CURDIR)/build/import" $(GPU_PYTHON) -m slimdeploy.benchmarks.gpu_chain run --work "$(WORK)" -o "$(RESULTS)" $(CHAIN)

# The device side on an emulated ARM64 CPU (Debian's qemu-user-static).
device-check: install
	$(BIN)/python tests/device/check.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	@mkdir -p $(TYPES) && ln -sfn "$(CURDIR)" $(TYPES)/slimdeploy
	MYPYPATH=$(TYPES) $(BIN)/mypy -p slimdeploy

install: .venv/installed

.venv/installed: setup.cfg constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[host,cpu,device,report,sweep,test]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
