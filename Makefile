# Two commands are all there is to know: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test check clean

demo: $(READY)
	$(BIN)/python examples/neighbours.py

test: check
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Some distributions ship Python without its venv module; virtualenv from the package index stands in.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV): a minute or two, most of it PyTorch."
	@$(BIN)/python -c "" 2>/dev/null || $(PYTHON) -m venv --clear $(VENV) 2>/dev/null || { rm -rf $(VENV); $(PYTHON) -m pip install -q virtualenv && $(PYTHON) -m virtualenv -q $(VENV); }
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
