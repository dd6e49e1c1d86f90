"""The stream is a part of a stack whose use case asks for it, and comes back; one command readies a source."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from adapters.retrying import wait_until
from adapters.warehouse import Warehouse
from infra.local.__main__ import main as manage_stack
from infra.local.plan import plan_stack
from infra.local.stack import PartStatus, Stack
from infra.replay.flights_source import IDENTITIES, create_source_tables
from tests.conftest import start_stack
from tests.shipped import read_shipped_params
from tests.tasks.stream.receiving import SECRET, SECRET_ENV, URL_ENV, Receiver, plant_answers, receiving

PATIENCE_SECONDS = 120


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    with receiving(made):
        yield made


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: None, receiver: Receiver) -> Iterator[Stack]:
    """A stack whose use case follows its source by the log, and sends its answers to a webhook."""
    params = read_shipped_params()
    params["flights"]["source"] |= {"follow": "cdc", "watermark": None}
    webhook = {"url_env": URL_ENV, "secret_env": SECRET_ENV, "max_answers": 10, "timeout_seconds": 15}
    params["flights"]["endpoint"]["answers"]["webhook"] = webhook
    monkeypatch.setenv(URL_ENV, receiver.url)
    monkeypatch.setenv(SECRET_ENV, SECRET)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setenv("WINDSOCK_PARAMS", str(tmp_path / "params.yaml"))
    with contextmanager(start_stack)("postgres", "s3", "stream") as stack:
        yield stack


def find_stream(stack: Stack) -> PartStatus:
    [found] = [row for row in stack.status() if row.part == "stream"]
    return found


def test_it_is_up_and_comes_back_when_it_is_killed(followed: Stack) -> None:
    before = find_stream(followed)
    assert before.healthy
    assert before.pid is not None
    os.kill(before.pid, signal.SIGKILL)

    def is_back() -> bool:
        now = find_stream(followed)
        return now.healthy and now.pid != before.pid

    assert wait_until(is_back, within_seconds=PATIENCE_SECONDS, every_seconds=0.5)


def test_it_sends_answers_to_the_webhook_that_the_environment_of_make_up_names(
    followed: Stack, receiver: Receiver
) -> None:
    plant_answers(Warehouse(followed.home().dsn("warehouse")), 0, 25)
    assert wait_until(lambda: len(receiver.list_keys()) == 25, within_seconds=PATIENCE_SECONDS)
    assert [len(message.answers) for message in receiver.taken] == [10, 10, 5]


def test_one_command_readies_the_source_and_a_second_time_changes_nothing(
    followed: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    def publish() -> tuple[int, str]:
        status = manage_stack(["publish", "--home", str(followed.folder), "--", "flights"])
        said = capsys.readouterr()
        return status, said.out + said.err

    source = Warehouse(followed.home().dsn("source"))
    create_source_tables(source)
    status, said = publish()
    assert status == 1
    assert "airlines has no primary key" in said
    for name, columns in IDENTITIES.items():
        source.execute(f"alter table {name} add primary key ({', '.join(columns)})")
    status, said = publish()
    assert status == 0
    assert "publication windsock_flights: made, of airlines, airports, flights, movements, planes, weather" in said
    status, said = publish()
    assert status == 0
    assert "publication windsock_flights: was there" in said


@pytest.mark.usefixtures("processes")
def test_a_stack_in_which_nothing_is_followed_has_no_such_part(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = ("postgres", "s3", "stream")
    assert "stream" in {item.name for item in plan_stack(stack.home(), parts)}
    params = read_shipped_params()
    params["flights"]["source"]["follow"] = params["flights"]["endpoint"]["answers"] = None
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.setenv("WINDSOCK_PARAMS", str(tmp_path / "params.yaml"))
    assert "stream" not in {item.name for item in plan_stack(stack.home(), parts)}
