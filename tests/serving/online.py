"""A bundle of the shipped use case's shape, trained in a second on noise, and requests to ask it with."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pyarrow as pa
from psycopg2.extras import execute_values

import features
from features.feature_rows import FeatureRows
from features.online import Event
from models import bundle
from models.ensemble import fit_ensemble
from models.interval import ConformalInterval
from serving.lookup import LookedUpFeatures
from tests.features.stored import Stored
from tests.models.synthetic import table
from tests.models.test_training import CPU, recipe

EVENT = {
    "carrier": "UA",
    "flight": 15,
    "tailnum": "N12345",
    "origin": "EWR",
    "dest": "LAX",
    "scheduled_departure": "2013-07-04T18:30:00-04:00",
    "scheduled_arrival": "2013-07-04T21:30:00-07:00",
}
OPTIONS = {
    "title": "Late arrival of flights",
    "kind": "binary",
    "lead_minutes": 120,
    "threshold": 1 / 6,
    "max_events": 256,
    "store_timeout_ms": 100,
    "max_feature_age_hours": 192.0,
}


AS_OF = datetime(2013, 7, 4, 20, tzinfo=UTC)
MOMENT = "2013-07-04T18:30:00-04:00"


@dataclass(frozen=True, kw_only=True)
class Field:
    """A field of a request, as a feature definition declares it."""

    name: str
    kind: str
    required: bool = True
    pattern: str | None = None
    minimum: int | None = None
    maximum: int | None = None
    meaning: str = "a field"
    example: Any = None


FIELDS = (
    Field(name="carrier", kind="varchar", pattern="[A-Z0-9]{2}", example="UA"),
    Field(name="flight", kind="bigint", minimum=1, maximum=9999, example=15),
    Field(name="tailnum", kind="varchar", required=False, example="N12345"),
    Field(name="scheduled_departure", kind="timestamp", example=MOMENT),
)
SMALL = {"carrier": "UA", "flight": 15, "tailnum": "N12345", "scheduled_departure": MOMENT}


@dataclass
class Echo:
    """Features that are what was asked: `flight` as a number. Nothing is known of the carrier XX."""

    as_of: datetime | None = AS_OF
    lookups: int = 0

    def look_up(self, events: Sequence[Event]) -> LookedUpFeatures:
        self.lookups += 1
        lead = 2 * 3600 * 1_000_000
        rows = FeatureRows(
            ("flight", "empty"),
            (),
            [each["carrier"] for each in events],
            [each["scheduled_departure"] for each in events],
            [each["scheduled_departure"] - lead for each in events],
            [(float(each["flight"]), None) for each in events],
        )
        problems = tuple(("no history for XX",) if each["carrier"] == "XX" else () for each in events)
        return LookedUpFeatures(rows, self.as_of, "dataset", problems)


class Halves:
    """Predicts flight / 10,000."""

    interval = None

    def predict(self, table: pa.Table) -> Any:
        return table["flight"].to_numpy() / 10_000

    def predict_rows(self, rows: FeatureRows) -> Any:
        return self.predict(rows.table)


def event(**changes: Any) -> dict[str, Any]:
    return {**EVENT, **changes}


def rows(count: int, *, seed: int = 0) -> pa.Table:
    """Labelled rows with the shipped columns; what they hold means nothing."""
    definition, draw = features.definition("flights"), np.random.default_rng(seed)
    base = table(count, seed=seed)
    numbers = {name: pa.array(draw.normal(0, 10, count).astype(np.float32)) for name in definition.numeric}
    texts = {name: pa.array(draw.choice(["UA", "AA", "EWR", "LAX", "JFK"], count)) for name in definition.categorical}
    keys = ("entity_key", "event_time", "prediction_time", "label", "label_time")
    return pa.table({**{name: base[name] for name in keys}, **numbers, **texts})


def make_bundle(
    folder: Path, *, seed: int = 0, digest: str | None = None, interval: ConformalInterval | None = None
) -> str:
    """A bundle in an empty folder; its digest. With another `digest` it belongs to other features.

    With an interval it is a regression.
    """
    definition = features.definition("flights")
    small = recipe(
        kind="regression" if interval else "binary",
        numeric=definition.numeric,
        categorical=definition.categorical,
        hidden_units=16,
        epochs=1,
        seeds=(seed, seed + 1),
    )
    return bundle.write_bundle(
        folder,
        fit_ensemble(small, rows(600, seed=seed), CPU),
        use_case="flights",
        features_digest=digest or definition.digest(),
        definition="{}",
        recipe=small.to_document(),
        data={"snapshot_version": "v"},
        metrics={"auc": 0.7},
        versions={},
        interval=interval,
    )


def as_json(events: pa.Table) -> list[dict[str, Any]]:
    """Events as clients write them."""
    return [
        {name: f"{value.isoformat()}Z" if isinstance(value, datetime) else value for name, value in row.items()}
        for row in events.to_pylist()
    ]


def fill(dsn: str, stored: Stored, since: datetime, as_of: datetime) -> None:
    """Make what a store in memory holds the warehouse's."""
    digest = features.definition("flights").digest()
    rows = [("flights", digest, key, payload) for key, payload in stored.series.items()]
    connection = psycopg2.connect(dsn)
    with connection, connection.cursor() as at:
        execute_values(at, "insert into online_series (use_case, definition, key, payload) values %s", rows)
        at.execute(
            "insert into online_state (use_case, definition, since, as_of, snapshot_version, revision)"
            " values ('flights', %s, %s, %s, 'v', 1)",
            (digest, since, as_of),
        )
    connection.close()
