"""What the features of taxi trips say: the same in batch and online, and in any partitions; nothing of the future."""

import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from adapters.parquet import to_bytes
from expectations import suites
from features import build, definition
from features.offline_requests import load_past_requests
from pipeline.partitions import Interval
from pipeline.settings import REPOSITORY
from pipeline.spec import use_cases
from tasks.build_features.as_online import compute_as_online
from tests.taxi_trips import day, made_tables, needs_trips, real_tables

TAXI = definition("taxi")
LEAD = use_cases(REPOSITORY / "params.yaml")["taxi"].time.lead
Tables = Mapping[str, pa.Table]
MOMENT = pa.timestamp("us", "UTC")
SPAN = Interval(day(35), day(42))


def written(tables: Tables, folder: str, since: datetime, until: datetime) -> dict[str, list[Path]]:
    """Files of what became known in [since, until)."""
    paths = {name: [Path(folder) / f"{name}.parquet"] for name in tables}
    for name, table in tables.items():
        known = table["known_at"]
        inside = pc.and_(pc.greater_equal(known, pa.scalar(since, MOMENT)), pc.less(known, pa.scalar(until, MOMENT)))
        pq.write_table(table.filter(inside), paths[name][0])
    return paths


def computed(tables: Tables, span: Interval = SPAN) -> tuple[pa.Table, pa.Table]:
    with tempfile.TemporaryDirectory() as folder:
        return build(TAXI, written(tables, folder, span.start - TAXI.look_back, span.end), span, LEAD)


def differing(before: pa.Table, after: pa.Table) -> list[str]:
    assert before.select(["entity_key", "event_time"]).equals(after.select(["entity_key", "event_time"]))
    return [n for n in before.column_names if not before[n].combine_chunks().equals(after[n].combine_chunks())]


@pytest.mark.parametrize(
    ("tables", "span"),
    [
        pytest.param(made_tables, SPAN, id="made"),
        pytest.param(
            real_tables,
            Interval(datetime(2019, 7, 1, tzinfo=UTC), datetime(2019, 7, 8, tzinfo=UTC)),
            id="real",
            marks=needs_trips,
        ),
        pytest.param(
            real_tables,
            Interval(datetime(2020, 5, 11, tzinfo=UTC), datetime(2020, 5, 18, tzinfo=UTC)),
            id="real, vendors missing",
            marks=needs_trips,
        ),
    ],
)
def test_online_answers_what_the_batch_computes_to_the_last_bit(tables: Callable[[], Tables], span: Interval) -> None:
    batch, _ = computed(tables(), span)
    with tempfile.TemporaryDirectory() as folder:
        files = written(tables(), folder, span.start - TAXI.look_back, span.end)
        asked = load_past_requests(TAXI, files, span, LEAD)
        online = compute_as_online(TAXI, files, span, LEAD, asked.drop_columns(["entity_key", "event_time"]))
    order = [("prediction_time", "ascending"), ("entity_key", "ascending")]
    assert batch.num_rows > 500
    assert differing(batch.sort_by(order), online.sort_by(order)) == []


def test_days_give_the_same_rows_and_bytes_as_weeks() -> None:
    days = [day(35 + n) for n in range(8)]
    points, labels = computed(made_tables())
    parts = [computed(made_tables(), Interval(start, end)) for start, end in pairwise(days)]
    assert to_bytes(pa.concat_tables([p for p, _ in parts])) == to_bytes(points)
    assert to_bytes(pa.concat_tables([told for _, told in parts])) == to_bytes(labels)


@pytest.mark.parametrize("moment", [day(36) + timedelta(hours=17), day(39)])
def test_planted_future_moves_no_feature(moment: datetime) -> None:
    tables = dict(made_tables())
    table = tables["dropoffs"]
    late = pc.greater(table["known_at"], pa.scalar(moment, MOMENT))
    values = {"trip_minutes": pa.scalar(179.0), "trip_miles": pa.scalar(0.2)}
    for name, value in values.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pc.if_else(late, value, table[name]))
    before, after = (computed(each)[0] for each in (tables, tables | {"dropoffs": table}))
    told = pc.less_equal(before["prediction_time"], pa.scalar(moment, MOMENT))
    assert pc.sum(told).as_py() > 50
    assert differing(before.filter(told), after.filter(told)) == []
    assert "all_pace_3h" in differing(before.filter(pc.invert(told)), after.filter(pc.invert(told)))


def test_every_feature_says_something_and_a_count_of_nobody_is_missing() -> None:
    points, labels = computed(made_tables())
    for name in (*TAXI.numeric, *TAXI.categorical):
        assert points[name].null_count < points.num_rows, name
    entries = made_tables()["trips"]
    inside = pc.greater_equal(entries["pickup_at"], pa.scalar(SPAN.start, MOMENT))
    inside = pc.and_(inside, pc.less(entries["pickup_at"], pa.scalar(SPAN.end, MOMENT)))
    counted = entries.filter(inside)["passenger_count"]
    nobody = pc.sum(pc.equal(pc.fill_null(counted, 0), 0)).as_py()
    assert nobody > 0
    assert points["passenger_count"].null_count == nobody
    assert 0 < points["vendor"].null_count < points.num_rows
    assert pc.max(labels["label"]).as_py() < 180, "a meter that was forgotten has no label"
    assert labels.num_rows < points.num_rows


def test_a_holiday_is_one_by_the_clock_of_new_york() -> None:
    """Martin Luther King's day, 15 January 2018: from 05:00 UTC to 05:00 UTC."""
    points, _ = computed(made_tables(), Interval(day(14), day(16)))
    start, end = (pa.scalar(day(n) + timedelta(hours=5), MOMENT) for n in (14, 15))
    at = points["prediction_time"]
    expected = pc.and_(pc.greater_equal(at, start), pc.less(at, end))
    assert pc.sum(expected).as_py() > 50
    assert points["is_holiday"].to_pylist() == [float(each) for each in expected.to_pylist()]


def test_every_column_that_features_read_is_expected_of_deliveries_with_the_kind_of_its_type() -> None:
    sql_types = {"text": "varchar", "integer": "bigint", "float": "double", "timestamp": "timestamp", "date": "date"}
    for table, source in TAXI.sources.items():
        expected = {name: sql_types[column.kind] for name, column in suites("taxi")[table].columns.items()}
        assert source.columns.items() <= expected.items()
