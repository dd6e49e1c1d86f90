"""An online store that is filled, in one part or in two, and what is asked of it."""

import tempfile
from collections.abc import Iterator

import psycopg2.extras
import pyarrow as pa
import pytest

from adapters.connect import Outside
from features.followed import FollowedSeries
from tests.features.stored import Stored, filled, parquet, requests
from tests.features.test_followed import IDENTITIES, KEYS, known_by
from tests.features.world import FLIGHTS, LEAD, World, day, engine, small_world
from tests.serving.stream_writes import AS_OF, CUT, SINCE, SPLIT, write_step


@pytest.fixture(scope="module")
def world() -> World:
    return small_world()


@pytest.fixture(scope="module")
def events(world: World) -> pa.Table:
    return requests(world, day(17), AS_OF).slice(0, 64)


@pytest.fixture(scope="module")
def batch(world: World) -> pa.Table:
    return engine(world, day(17), AS_OF)[0].slice(0, 64)


@pytest.fixture(scope="module")
def store(world: World) -> Stored:
    return filled(world, SINCE, AS_OF)


@pytest.fixture
def full(outside: Outside, store: Stored) -> Outside:
    """A warehouse whose online store is filled."""
    digest = FLIGHTS.digest()
    with outside.warehouse.transaction() as at:
        at.execute(
            "insert into online_state (use_case, definition, since, as_of, snapshot_version, revision)"
            " values ('flights', %s, %s, %s, 'v1', 1)",
            (digest, SINCE, AS_OF),
        )
        rows = [("flights", digest, key, payload) for key, payload in store.series.items()]
        psycopg2.extras.execute_values(
            at, "insert into online_series (use_case, definition, key, payload) values %s", rows
        )
    return outside


@pytest.fixture
def followed(world: World) -> Iterator[FollowedSeries]:
    """The series as they were known by CUT, in two parts."""
    with tempfile.TemporaryDirectory() as folder:
        files = parquet(known_by({name: world[name] for name in IDENTITIES}, CUT), folder)
        series = FollowedSeries(FLIGHTS, files, KEYS, since=SINCE, split=SPLIT, lead=LEAD)
    yield series
    series.close()


@pytest.fixture
def parted(outside: Outside, followed: FollowedSeries) -> Outside:
    """A warehouse whose online store was refreshed at SPLIT, and followed until CUT."""
    outside.warehouse.execute(
        "insert into online_state (use_case, definition, since, as_of, snapshot_version, split, revision)"
        " values ('flights', %s, %s, %s, 'v1', %s, 1)",
        (FLIGHTS.digest(), SINCE, SPLIT, SPLIT),
    )
    write_step(outside, followed.pack_all(), CUT, changes=1)
    return outside
