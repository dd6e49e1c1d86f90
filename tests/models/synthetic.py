"""Small labelled tables with a signal a network can find, and every kind of awkward column."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

NUMERIC = ("hour", "wind", "pace", "constant", "empty")
CATEGORICAL = ("carrier", "route")
START = datetime(2013, 1, 1, tzinfo=UTC)


def table(rows: int = 4000, *, seed: int = 0, kind: str = "binary", days: float = 40.0) -> pa.Table:
    """Rows over `days` days from START, in time order; the label depends on hour, wind, pace and carrier."""
    draw = np.random.default_rng(seed)
    moments = [START + timedelta(days=float(d)) for d in np.sort(draw.uniform(0, days, rows))]
    hour, wind, pace = draw.uniform(5, 23, rows), draw.exponential(10, rows), draw.normal(0, 1, rows)
    carrier = draw.choice(["AA", "B6", "EV", "UA"], rows)
    effect = (hour - 14) / 5 + wind / 10 - 1 + pace + np.where(carrier == "EV", 1.0, 0.0)
    noisy = effect + draw.logistic(0, 1, rows) - 1
    wind_seen = np.where(draw.random(rows) < 0.1, np.nan, wind)
    wind_seen[:3] = [np.inf, -np.inf, 1048.0][:rows]
    route = np.array([f"R{i}" for i in draw.zipf(1.5, rows)])
    return pa.table(
        {
            "entity_key": [f"{c}{i}" for i, c in enumerate(carrier)],
            "event_time": pa.array([m + timedelta(hours=2) for m in moments], pa.timestamp("us", "UTC")),
            "prediction_time": pa.array(moments, pa.timestamp("us", "UTC")),
            "hour": hour,
            "wind": wind_seen,
            "pace": pace.astype(np.float32),
            "constant": np.full(rows, 7.0),
            "empty": pa.nulls(rows, pa.float64()),
            "carrier": pa.array(carrier, mask=draw.random(rows) < 0.05),
            "route": route,
            "label": (noisy > 0).astype(np.float64) if kind == "binary" else 20 + 5 * noisy,
            "label_time": pa.array([m + timedelta(hours=5) for m in moments], pa.timestamp("us", "UTC")),
        }
    )
