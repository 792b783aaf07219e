# make demo    search the first example and write results/demo
# make test    the tests, two at a time (JOBS=n to change)
# make mutants all broken kernels through the checks (half an hour); writes docs/mutants.md
# make check   lint, format, types, layers
# make .venv   what those above make for themselves

PYTHON ?= python3.11
JOBS   ?= 2
BIN    := .venv/bin
STAMP  := .venv/.installed

.PHONY: demo test mutants check .venv clean

demo: $(STAMP)
	$(BIN)/superopt search examples/attention.py --out results/demo

test: $(STAMP)
	$(BIN)/pytest -q -n $(JOBS) --dist worksteal

mutants: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m mutants.run --jobs $(JOBS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache results/demo
