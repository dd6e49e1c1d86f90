"""A use case whose source is followed, by its log or by polling, with two weeks of history in the online store."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.extensions import make_dsn, parse_dsn

from adapters.connect import Outside
from adapters.errors import SlotInUse
from adapters.replication_setup import drop_slot
from adapters.retrying import retry_call
from infra.local.stack import Stack
from pipeline.handoffs import Snapshot
from pipeline.settings import Settings
from pipeline.spec import UseCase
from tasks.build_features import build, online_features
from tasks.stream.log_reader import slot_name
from tasks.stream.prepare_source import prepare_source
from tests.clean_data import week
from tests.tasks.build_features.test_build import put
from tests.tasks.stream.live import PATIENCE_SECONDS, LiveSource, live

FOLLOWER = "follower_of_a_test"


@pytest.fixture(params=["poll", "cdc"])
def follow(request: pytest.FixtureRequest) -> str:
    """How the source is followed."""
    return str(request.param)


@pytest.fixture
def followed(use_case: UseCase, follow: str) -> UseCase:
    return live(use_case, follow)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """With the role that follows."""
    return replace(settings, follower_dsn=str(make_dsn(settings.source_dsn, user=FOLLOWER, password=FOLLOWER)))


@pytest.fixture
def outside(settings: Settings) -> Outside:
    return Outside(settings)


@pytest.fixture
def snapshot(followed: UseCase, outside: Outside) -> Snapshot:
    """Two weeks of clean data, in the store."""
    put(outside, followed, 0, 1)
    built = build.build_snapshot(followed, outside)
    assert built is not None
    online_features.refresh_store(followed, built, outside)
    return built


@pytest.fixture
def admin_dsn(outside: Outside, running_stack: Stack) -> str:
    """The source, as its administrator opens it."""
    return str(make_dsn(running_stack.home().admin_dsn, dbname=parse_dsn(outside.settings.source_dsn)["dbname"]))


@pytest.fixture
def source(followed: UseCase, outside: Outside, admin_dsn: str) -> Iterator[LiveSource]:
    """Its tables, ready to be followed."""
    made = LiveSource(outside, followed, week(2).start)
    made.create()
    assert outside.settings.follower_dsn is not None
    prepare_source(followed, admin_dsn, outside.settings.follower_dsn)
    yield made
    _clean(admin_dsn, slot_name(followed))


def _clean(admin_dsn: str, name: str) -> None:
    def end_slot() -> None:
        with closing(psycopg2.connect(admin_dsn)) as opened, opened, opened.cursor() as at:
            at.execute("select pg_terminate_backend(active_pid, 5000) from pg_replication_slots where active")
            drop_slot(at, name)

    retry_call(end_slot, errors=SlotInUse, within_seconds=PATIENCE_SECONDS, pause_seconds=0.05)
    with closing(psycopg2.connect(admin_dsn)) as opened, opened, opened.cursor() as at:
        at.execute(sql.SQL("drop publication if exists {}").format(sql.Identifier(name)))
        at.execute(sql.SQL("drop owned by {0}; drop role {0}").format(sql.Identifier(FOLLOWER)))
