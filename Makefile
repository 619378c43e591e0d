# Two commands are all there is to know: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# One more than cores, up to four: tests that start servers and trainings wait a good part of their time.
WORKERS ?= $(shell $(PYTHON) -c "import os; print(min(4, (os.cpu_count() or 1) + 1))")

.PHONY: demo test test-all check lint test-oldest test-newest docs pictures bench bench-all fuzz kill wheel clean

demo: $(READY)
	$(BIN)/python examples/neighbours.py

# Behind a worker that was lost, another may be waited for without an end: none is begun, and the tests fail.
XDIST = --dist loadfile --max-worker-restart 0

# Types are checked while the tests run: each leaves a core to the other for a good part of its time.
PYTEST = $(BIN)/mypy & types=$$!; $(BIN)/python -m pytest -n $(WORKERS) $(XDIST) $(1); tests=$$?; wait $$types && exit $$tests

test: lint
	$(call PYTEST,-m "not slow")

# With what `make test` leaves out, as it takes long.
test-all: lint
	$(call PYTEST)

check: lint
	$(BIN)/mypy

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The site, in build/docs; a link that leads nowhere ends the build.
docs: $(READY)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	$(BIN)/python docs/build_site.py

# The documentation's pictures, which are kept in docs/pictures.
pictures: $(READY)
	$(BIN)/python docs/pictures.py

# The lowest versions that pyproject.toml promises, and the newest that there are. PyTorch comes with CUDA in both: gigabytes.
# uv finds versions in seconds and installs them in two minutes; pip takes twenty to find them.
OLDEST ?= python3.10
COMMA  := ,
TRIED  := train,probe,plots,onnx,search,remote
# Of moto the part that is an object store: all of it wants a newer boto than s3fs of 2023.
TOOLS  := pytest pytest-xdist hypothesis pandas psutil "kaldi-native-fbank>=1.20,<1.23" "moto[s3]>=5" flask flask-cors
# What compiles a model or needs neighbours is left to `make test`.
LEFT   := --ignore=tests/integrations --ignore=tests/test_compilers.py --ignore=tests/test_docs.py --ignore=tests/test_notebooks.py \
          --ignore=tests/test_site.py --ignore=tests/serve --ignore=tests/distributed --ignore=tests/maps

test-oldest:
	$(OLDEST) -m venv --clear build/oldest
	build/oldest/bin/python -m pip install -q uv
	build/oldest/bin/uv pip compile -q --python build/oldest/bin/python --resolution lowest-direct pyproject.toml \
	  $(patsubst %,--extra %,$(subst $(COMMA), ,$(TRIED))) -o build/oldest.txt
	build/oldest/bin/uv pip install -q --python build/oldest/bin/python -c build/oldest.txt -e ".[$(TRIED)]" $(TOOLS)
	build/oldest/bin/python -m pytest -n auto --maxprocesses 4 $(XDIST) $(LEFT)

test-newest:
	$(PYTHON) -m venv --clear build/newest
	build/newest/bin/python -m pip install -q uv
	build/newest/bin/uv pip install -q --python build/newest/bin/python -e ".[$(TRIED)]" $(TOOLS)
	build/newest/bin/python -m pytest -n auto --maxprocesses 4 $(XDIST) $(LEFT)

# How fast it is: small tables in a few minutes, in build/bench; or, in an hour or more, those that are kept. Peers take
# part where benchmarks/peers.sh has installed them.
bench: $(READY)
	$(BIN)/python benchmarks/all.py

bench-all: $(READY)
	$(BIN)/python benchmarks/all.py --whole

# Twelve minutes of damaged files, two for each kind; what breaks something is left in build/fuzz.
FUZZ_SECONDS ?= 120
fuzz: $(READY)
	FUZZ_SECONDS=$(FUZZ_SECONDS) $(BIN)/python -m pytest -s tests/fuzz

# Commands are killed at random moments, and their outputs compared with those of calm runs.
kill: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/kill.py --moments 50

# What a release is made of: both packages, and the wheel tried in an environment that has nothing else.
wheel: $(READY)
	rm -rf dist build/wheel-test
	$(BIN)/python -m pip install -q build
	$(BIN)/python -m build -q --outdir dist .
	$(BIN)/python -m venv build/wheel-test
	build/wheel-test/bin/python -m pip install -q -c constraints.txt dist/*.whl
	cd build && PATH=$(CURDIR)/build/wheel-test/bin:$$PATH wheel-test/bin/python ../examples/neighbours.py

# Some distributions ship Python without its venv module; virtualenv from the package index stands in.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up $(VENV): a minute or two, most of it PyTorch."
	@$(BIN)/python -c "" 2>/dev/null || $(PYTHON) -m venv --clear $(VENV) 2>/dev/null || { rm -rf $(VENV); $(PYTHON) -m pip install -q virtualenv && $(PYTHON) -m virtualenv -q $(VENV); }
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
