# Two commands for a newcomer: `make demo` and `make test`. `make help` lists the rest.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := 0.11.14

.DEFAULT_GOAL := help
.PHONY: help install demo ui test test-cluster kill check format bench constraints clean

help: ## List these commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null || \
	 sed -n 's/^\([a-z-]*\):.*## /  make \1   /p' $(MAKEFILE_LIST)

install: $(VENV)/installed ## Make .venv with Airflow, this package, the sandbox and the tests' tools

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	 { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 …"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Airflow and this package into $(VENV) (about half a minute) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt \
	    --editable '.[sandbox]' --group dev
	@touch $@

demo: install ## From nothing to a poster: the sandbox, one run of poster_daily, the picture on disk
	@$(BIN)/python scripts/demo.py

ui: install ## The same world in Airflow's UI, without a login; Ctrl-C ends it
	@$(BIN)/python scripts/ui.py

test: install ## The whole test suite, servers included
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/cluster

test-cluster: install ## A campaign on Celery, PostgreSQL and Redis, with a worker and the triggerer killed
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --group cluster
	$(BIN)/python -m pytest tests/cluster

kill: install ## 240 randomised kill -9 trials, counted by the stand-in's own ledger (some minutes)
	$(BIN)/python -m tests.kill --trials 240

check: install ## ruff, ruff format, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install ## Let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## What one image costs, beside the vendor's example and the openai SDK
	$(BIN)/python -m benchmarks.one_image

constraints: install ## Renew constraints.txt: the versions that everyone gets
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate \
	    --extra sandbox --group dev --group cluster --output-file constraints.txt pyproject.toml

clean: ## Remove what these commands made
	rm -rf $(VENV) .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
