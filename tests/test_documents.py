"""The documents are true: what they name exists, and what they say to type is taken by the program that it is for."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime

import psycopg2
import pytest
import yaml
from psycopg2.extensions import make_dsn

from adapters.warehouse import Warehouse
from infra.local.stack import Stack
from infra.replay.flights_source import add_keys, create_source_tables
from pipeline.online import AnswerSettings
from pipeline.settings import REPOSITORY
from pipeline.spec import use_cases
from tasks.stream.deliver_answers import make_document
from tests.conftest import TEMPLATE, drop_database, make_database
from tests.page_checks import RUN_BY, Databases, list_mistakes
from tests.pages import PAGES, list_spans, read_blocks, read_page
from tests.typed_commands import fill_placeholders

README = read_page("README.md")


def make_verbs() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))


def tracked_folders() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return {line.partition("/")[0] for line in listed.splitlines() if "/" in line and not line.startswith(".")}


@pytest.mark.usefixtures("processes")
def test_the_readme_shows_every_folder_of_the_repository() -> None:
    tree = README.partition("## The tree")[2].partition("```")[2].partition("```")[0]
    assert set(re.findall(r"^([a-z]+)/ ", tree, flags=re.MULTILINE)) == tracked_folders()
    for file in re.findall(r"^([a-z]+\.yaml) ", tree, flags=re.MULTILINE):
        assert (REPOSITORY / file).exists()


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", read_page(page)):
        assert ((REPOSITORY / page).parent / link).exists(), link


def test_the_readme_names_the_two_commands() -> None:
    assert {"demo", "test"} <= make_verbs()
    assert "make demo" in README
    assert "make test" in README


@pytest.fixture(scope="module")
def databases(stack: Stack) -> Iterator[Databases]:
    """Of this file, since nothing that is tried on them stays."""
    dsns = {
        "warehouse": make_database(stack, "warehouse_of_pages", "warehouse", TEMPLATE),
        "source": make_database(stack, "source_of_pages", "source"),
    }
    source = Warehouse(dsns["source"])
    create_source_tables(source)
    with source.transaction() as at:
        add_keys(at)
        at.execute("create table data_clock (id int primary key, told_until timestamptz)")
    yield Databases(warehouse_dsn=dsns["warehouse"], source_dsn=dsns["source"])
    for name in ("warehouse_of_pages", "source_of_pages"):
        drop_database(stack, name)


@pytest.mark.parametrize("page", PAGES)
def test_all_that_a_page_says_to_type_is_taken(page: str, databases: Databases) -> None:
    assert list_mistakes(page, read_page(page), databases) == []


SABOTAGE = {
    "column": ("`select table_name, problems from batches`", 'column "problems" does not exist'),
    "column of the source": ("`select max(known_of) from <table>`", 'column "known_of" does not exist'),
    "deletion": ("`delete from online_answer where answered_at < now()`", 'relation "online_answer" does not exist'),
    "column that is named": ("`known_events.problems`", "known_events has no column problems"),
    "statement": ("```sql\nselect moved from stream_state;\n```", 'column "moved" does not exist'),
    "target": ("```\nmake demonstration\n```", "No rule to make target 'demonstration'"),
    "target in the text": ("Run `make quarantined TABLE=weather`.", "No rule to make target 'quarantined'"),
    "variable": ("`make demo WEKS=8`", "make: no WEKS in the Makefile"),
    "value that is needed": ("`make rebuild`", "say which: make rebuild VERSION=<hash>"),
    "value": ("`make demo WEEKS=eight`", "argument --weeks: invalid int value: 'eight'"),
    "flag": ("    .venv/bin/python -m tests.architecture --counts=all", "unrecognized arguments: --counts=all"),
    "missing argument": ("`.venv/bin/python -m tasks.stream.prepare_source`", "arguments are required: use_case"),
    "module": (
        "`.venv/bin/python -m tasks.prepare_source <use case>`",
        "tasks.prepare_source: there is no such module",
    ),
    "verb": ("`.venv/bin/python -m infra.local revise -- <client>`", "invalid choice: 'revise'"),
    "interpreter": ("`python -m infra.docs`", "python: expected .venv/bin/python"),
    "inner command": ("`.venv/bin/python -m infra.local run -- python -m infra.prometheus.export`", "no such module"),
    "service": ("`docker compose logs streams`", "docker compose logs: no service streams"),
    "compose": ("`docker compose up --watchful`", "docker compose up: no --watchful"),
    "profile": ("```\nCOMPOSE_PROFILES=monitoring,gpus\n```", "COMPOSE_PROFILES: no profile gpus"),
    "setting of the environment": ("```\nEXECUTORS=CeleryExecutor\n```", "EXECUTORS: not in .env.example"),
    "setting": ("`risk: huge`", "flights.risk"),
    "settings": ("```yaml\ngates: {min_effect: 0.1}\n```", "params.yaml has no gates"),
    "named setting": ("`endpoint.rollout.max_p98_ms`", "params.yaml has no endpoint.rollout.max_p98_ms"),
    "variable of ours": ("`WINDSOCK_HELM_CHARTS=<folder> make test`", "WINDSOCK_HELM_CHARTS: nothing here reads it"),
    "address": ("`curl 127.0.0.1:9188/metrics`", "127.0.0.1:9188/metrics: nobody is asked there"),
    "DAG": ("run `<use case>.ingests`", "there is no DAG <use case>.ingests"),
    "chart": ("    helm upgrade stream infra/helm/streams", "helm: no infra/helm/streams"),
    "language": ("```python\nprint(1)\n```", "a block of 'python': no test runs it"),
    "program": ("```\nkubectl apply -f infra/helm\n```", "kubectl apply -f infra/helm: no test runs it"),
    "path": ("```\nREADMORE.md   what this is not\n```", "no test runs it"),
    "unclosed string": ("```sh\nmake test 'all\n```", "unclosed"),
}


@pytest.mark.parametrize("fault", SABOTAGE)
def test_a_page_that_says_to_type_what_is_not_taken_is_refused(fault: str, databases: Databases) -> None:
    text, expected = SABOTAGE[fault]
    [problem] = list_mistakes("docs/made-up.md", f"# A page\n\n{text}\n", databases)
    assert expected in problem


def test_airflow_itself_refuses_words_that_it_does_not_know(databases: Databases) -> None:
    line = (
        "airflow backfill create --dag-id flights.ingest --from-date 2013-01-07 --to-date 2013-02-04 --since 2013-01-07"
    )
    [problem] = list_mistakes("docs/made-up.md", f"```\ndocker compose exec scheduler {line}\n```\n", databases)
    assert "unrecognized arguments: --since" in problem


def test_a_page_whose_blocks_another_test_runs_is_refused_without_it(
    databases: Databases, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = read_page("docs/monitoring.md")
    monkeypatch.setitem(RUN_BY, ("docs/monitoring.md", "yaml"), "tests/infra/test_ports.py")
    problem = "tests/infra/test_ports.py does not run the blocks of docs/monitoring.md"
    assert set(list_mistakes("docs/monitoring.md", text, databases)) == {problem}


def run_line(line: str, *, environment: dict[str, str], said: str = "") -> str:
    """What a line prints that is typed into a shell of the checkout, with this environment instead of `.venv`."""
    line = fill_placeholders(line).replace(".venv/bin/python", sys.executable)
    done = subprocess.run(
        ["bash", "-euc", line], cwd=REPOSITORY, env=environment, input=said, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_owner_of_a_source_prepares_it_by_the_line_of_the_page_with_nothing_else_set(
    databases: Databases, stack: Stack
) -> None:
    [line] = [block for block in read_blocks("docs/online.md", "") if "prepare_source" in block]
    admin = make_dsn(stack.home().admin_dsn, dbname="source_of_pages")
    follower = make_dsn(databases.source_dsn, user="follower_of_pages", password="made")
    for address in (admin, follower):
        line = line.replace("=...", f"={shlex.quote(str(address))}", 1)
    printed = run_line(line, environment={"PATH": os.defpath}).splitlines()
    assert [printed[0].partition(",")[0], printed[1]] == [
        "publication windsock_flights: made",
        "role follower_of_pages: made",
    ]
    with closing(psycopg2.connect(admin)) as opened, opened, opened.cursor() as at:
        at.execute("drop publication windsock_flights; drop owned by follower_of_pages; drop role follower_of_pages")


def test_statements_of_the_runbooks_reach_the_warehouse_and_the_source_as_the_readme_says(stack: Stack) -> None:
    [line] = [span for span in list_spans(README) if span == "make sql"]
    # `make test` is a make too, and one that another starts speaks of the folders it enters.
    outer = {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    environment |= {"WINDSOCK_HOME": str(stack.folder)}
    asked = "select current_database()"
    assert "\n warehouse\n" in run_line(line, environment=environment, said=asked)
    assert "\n source\n" in run_line(f"{line} DATABASE=source", environment=environment, said=asked)
    half = subprocess.run(
        ["make", "sql"], cwd=REPOSITORY, env=environment, input="select from nowhere; select 1", capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert (half.returncode != 0, half.stdout) == (True, "")
    refused = subprocess.run(
        ["make", "sql", "DATABASE=sauce"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert "expected a database, one of source, studies, warehouse; got 'sauce'" in refused.stderr


def test_settings_and_messages_that_a_page_shows_are_of_their_form() -> None:
    [settings], [body] = read_blocks("docs/online.md", "yaml"), read_blocks("docs/online.md", "json")
    shown, message = yaml.safe_load(settings)["answers"], json.loads(body)
    assert AnswerSettings.model_validate(shown).webhook is not None
    with pytest.raises(ValueError, match="max_answer"):
        AnswerSettings.model_validate(shown | {"webhook": {**shown["webhook"], "max_answer": 1}})
    [answer] = message["data"]["answers"]
    moments = {
        name: datetime.fromisoformat(answer[name])
        for name in answer
        if name.endswith(("_time", "_at", "until")) and isinstance(answer[name], str)
    }
    row = {**answer, "score": answer["probability"], **moments}
    made = json.loads(make_document(use_cases(REPOSITORY / "params.yaml")["flights"], [row]))
    assert made["data"] == message["data"] | {"answers": [answer | {n: m.isoformat() for n, m in moments.items()}]}
    assert made.keys() == message.keys()
