# Two commands from a bare clone: `make demo` and `make check`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PROMPT ?= What is the capital of Italy?
# `make check ORACLE=` leaves torch and transformers out; the tests that need them are then skipped.
ORACLE ?= ,oracle
SOURCES := $(shell find native src -name '*.cpp' -o -name '*.h' -o -name '*.py') CMakeLists.txt

.PHONY: demo check check-cuda check-cuda-interpreted check-neon check-open-webui test lint stubs models-doc format clean

demo: .stamp/demo
	$(BIN)/flashmoe run "$(PROMPT)"

check: lint test

test: .stamp/dev
	$(BIN)/python -m pytest -q

# On a machine with an NVIDIA GPU: the kernels and models of the CUDA backend.
check-cuda: .stamp/cuda
	$(BIN)/python -m pytest -q -m cuda tests

# The same tests without a GPU, under Triton's interpreter: minutes, not seconds.
check-cuda-interpreted: .stamp/cuda
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -q -m cuda tests

lint: .stamp/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find native -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format --dry-run --Werror

# The NEON kernels, on any Debian machine: cross-built and run under qemu-user.
check-neon:
	tools/check-neon

# Open WebUI itself before the server, in an environment of its own (about 3 GB).
check-open-webui: .stamp/dev .stamp/open-webui
	FLASHMOE_SLOW=1 OPEN_WEBUI=$(VENV)-open-webui/bin/open-webui \
	  $(BIN)/python -m pytest -q tests/server/test_open_webui.py

# After a change of native/bind: what Python sees of it, for mypy and readers.
stubs: .stamp/dev
	$(BIN)/python -m nanobind.stubgen -m flashmoe._native -o src/flashmoe/_native.pyi

# After a change of a family or a shape: the table of what is supported.
models-doc: .stamp/dev
	$(BIN)/flashmoe families --markdown > docs/models.md

format: .stamp/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find native -name '*.cpp' -o -name '*.h' | xargs $(BIN)/clang-format -i

.stamp/venv:
	@$(PYTHON) -c 'import sys; sys.exit("flashmoe needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@mkdir -p .stamp && touch $@

.stamp/demo: .stamp/venv pyproject.toml $(SOURCES)
	$(BIN)/python -m pip install --quiet .
	@rm -f .stamp/dev && touch $@

.stamp/cuda: .stamp/dev
	$(BIN)/python -m pip install --quiet '.[cuda]' --editable '.[dev,serve]'
	@touch $@

.stamp/open-webui: .stamp/venv
	$(PYTHON) -m venv $(VENV)-open-webui
	$(VENV)-open-webui/bin/python -m pip install --quiet open-webui
	@touch $@

.stamp/dev: .stamp/venv pyproject.toml $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable '.[dev,serve$(ORACLE)]'
	@rm -f .stamp/demo && touch $@

clean:
	rm -rf $(VENV) $(VENV)-open-webui .stamp build
