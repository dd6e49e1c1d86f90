"""What each engine says of a drawn definition, feature by feature, and where one differs from the oracle."""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from unittest.mock import patch

import pyarrow as pa

from features import definition_expressions, engine
from features.engine import FeatureSet, build_by_sql
from features.followed import FollowedSeries
from features.offline import build_offline
from features.offline_requests import load_past_requests
from features.online import OnlineFeatures, StoreState, list_events
from features.series import extract_series, to_microseconds
from features.series_codec import pack_series
from features.stream_change import SourceKey
from tests.features.stored import CACHE_BYTES, Stored, parquet
from tests.features.window_oracle import Values, say_by_oracle
from tests.features.window_worlds import DAY, END, LEAD, SCHEMA, START, Drawn
from tests.features.world import Span

KEYS = {"orders": SourceKey(identity=("number", "known_at"), available_at="known_at")}


@contextmanager
def features_as_doubles() -> Iterator[None]:
    """Features are not rounded to 32 bits, which would hide what differs in the last of 64."""

    def as_doubles(definition: FeatureSet, *, write: Any = engine.doubles_sql) -> dict[str, str]:
        return {name: f"cast({write(sql)} as double)" for name, sql in definition.numeric_sql.items()}

    with (
        patch.object(engine, "features_sql", as_doubles),
        patch.object(definition_expressions, "features_sql", as_doubles),
    ):
        yield


def say_in_batch(drawn: Drawn, tables: Any, *, by_sql: bool) -> Values:
    """What DuckDB's batch says, by lookups or by SQL alone."""
    points, _ = (build_by_sql if by_sql else build_offline)(drawn.definition, tables, Span(START, END), LEAD)
    return {
        (row["entity_key"], to_microseconds(row["event_time"])): {n: row[n] for n in drawn.definition.numeric}
        for row in points.to_pylist()
    }


def store(drawn: Drawn, tables: Any) -> Stored:
    """The online store of all there is."""
    until = END + 100 * DAY
    state = StoreState(1, to_microseconds(START), to_microseconds(until), "dataset")
    if drawn.is_followed:
        split = START + 20 * DAY
        with closing(FollowedSeries(drawn.definition, tables, KEYS, since=START, split=split, lead=LEAD)) as followed:
            packed = followed.pack_all()
        return Stored(state, {**packed.settled}, {**packed.recent})  # type: ignore[arg-type]
    series = {}
    for item, table in extract_series(drawn.definition, tables, Span(START, until), LEAD):
        series |= dict(pack_series(item, table))
    return Stored(state, series)


def say_online(drawn: Drawn, tables: Any) -> Values:
    """What a server says to the requests of these points."""
    events = load_past_requests(drawn.definition, tables, Span(START, END), LEAD)
    online = OnlineFeatures(drawn.definition, LEAD, cache_bytes=CACHE_BYTES)
    asked = events.drop_columns(["entity_key", "event_time"])
    rows = online.compute_rows(list_events(asked), store(drawn, tables).fetch).rows
    keys = zip(rows.entity_keys, rows.event_times, strict=True)
    return {key: dict(zip(rows.numeric, values, strict=True)) for key, values in zip(keys, rows.values, strict=True)}


def differences(drawn: Drawn, expected: Values | None = None) -> list[str]:
    """Where an engine says something else, in a bit, than the oracle."""
    expected = say_by_oracle(drawn) if expected is None else expected
    with tempfile.TemporaryDirectory() as folder, features_as_doubles():
        tables = parquet({"orders": pa.Table.from_pylist(drawn.rows, SCHEMA)}, folder)
        said = {
            "lookups": say_in_batch(drawn, tables, by_sql=False),
            "SQL": say_in_batch(drawn, tables, by_sql=True),
            "online": say_online(drawn, tables),
        }
    return [*_compare(expected, said)]


def _compare(expected: Values, said: dict[str, Values]) -> Iterator[str]:
    for name, values in said.items():
        if values.keys() != expected.keys():
            yield f"{name}: other points: {sorted(values.keys() ^ expected.keys())[:5]}"
        for point in values.keys() & expected.keys():
            yield from (
                f"{name}: {feature} of {point}: {found!r}, expected {expected[point][feature]!r}"
                for feature, found in values[point].items()
                if repr(found) != repr(expected[point][feature])
            )
