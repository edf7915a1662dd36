PYTHON ?= python3
BIN := .venv/bin
# The package is this folder, whatever its name: type checking finds it under its import name through a link.
TYPES := .venv/types

.PHONY: demo test lint types install clean gpu-check

demo: install
	$(BIN)/slimdeploy run digits --output runs/digits
	@echo "Results: runs/digits/table.json, runs/digits/bench.json, the networks beside them; curves: $(BIN)/tensorboard --logdir runs/digits"

test: install lint types
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup

# On a machine with an NVIDIA GPU. GPU_PYTHON: a Python that has what is to be measured (torch, tensorrt, …).
GPU_PYTHON ?= $(BIN)/python
gpu-check:
	$(GPU_PYTHON) -m slimdeploy.benchmarks.gpu_check

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
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[host,cpu,test]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
