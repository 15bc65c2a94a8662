# Two commands do everything, set-up included: `make train` and `make test`. `make install` does the set-up alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test install lint format clean

train: install
	$(BIN)/python main.py --config=configs/digits.py --workdir=runs/digits
	$(BIN)/python -m tnt_jax.tools.pictures --workdir=runs/digits

test: install lint
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/installed

$(VENV)/installed: requirements.txt requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .ruff_cache
