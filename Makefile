# Two commands: `make quickstart` trains the embedded tiny model, `make test` runs every test that needs no GPU.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test check clean

quickstart: .venv/installed
	$(BIN)/ltune fit --config configs/quickstart.yaml

test: .venv/installed .venv/triton
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check.sh
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu"

check: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check.sh

# The tested versions; a plain `pip install ltune` takes the ranges of pyproject.toml. Python compiles what is imported, when it is: most of
# what is installed never is.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "ltune needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[dev]"
	touch $@

# torch's CPU build has no Triton, whose kernels tests interpret and compile: in a folder that they alone see. Without it they are skipped.
.venv/triton: .venv/installed
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps --target $@ triton==3.9.0 && touch $@

clean:
	rm -rf .venv runs
