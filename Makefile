# `make train` and `make test` include the set-up; `make install` does only the set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# 2 MB pages for large arrays make a training step a sixth shorter on a CPU (benchmarks/cpu.md), not on accelerators.
HUGE_PAGES := glibc.malloc.hugetlb=1

.PHONY: train test soak install lint format clean

train: install
	GLIBC_TUNABLES=$(HUGE_PAGES) $(BIN)/python main.py --config=configs/digits.py --workdir=runs/digits
	$(BIN)/python -m tnt_jax.tools.figures --workdir=runs/digits

test: install lint
	$(BIN)/python -m pytest

# Kills one run at twenty random moments, and processes of several hosts, and compares the results with undisturbed
# runs; then tries random configs, damaged weights and damaged images.
soak: install
	$(BIN)/python -m tests.soak --kills=20 --seed=0
	$(BIN)/python -m tests.soak.hosts
	$(BIN)/python -m tests.fuzz --examples=60 --seed=0
	$(BIN)/python -m tests.fuzz.weights --files=1500 --seed=0
	$(BIN)/python -m tests.fuzz.images --files=20000 --seed=0

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/installed

$(VENV)/installed: requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11 to 3.13 is needed (TensorFlow has no wheels for others); name one: make install PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt --editable .
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
