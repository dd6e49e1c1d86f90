"""A lookup by feast in Redis: the features of one flight at a time, 200 a second.

Run by the Python of an environment with feast[redis].
Arguments: a Parquet file of points, the port of Redis, and an empty folder. Prints milliseconds as JSON.
"""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig
from feast.types import Float32
from feast.value_type import ValueType

FEATURES, RATE, SECONDS = 45, 200, 20


def main(points: Path, port: int, folder: Path) -> None:
    """Fill the store, ask, and say how long it took."""
    table = pq.read_table(points)
    names = [field.name for field in table.schema if field.type == pa.float32()][:FEATURES]
    frame = table.select([*names, "event_time"]).to_pandas()
    frame["flight"] = np.arange(len(frame))
    frame.to_parquet(folder / "flights.parquet")
    store = FeatureStore(
        config=RepoConfig(
            project="flights",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store={"type": "redis", "connection_string": f"127.0.0.1:{port}"},
            entity_key_serialization_version=3,
        )
    )
    flight = Entity(name="flight", join_keys=["flight"], value_type=ValueType.INT64)
    view = FeatureView(
        name="points",
        entities=[flight],
        ttl=timedelta(0),
        schema=[Field(name=name, dtype=Float32) for name in names],
        source=FileSource(path=str(folder / "flights.parquet"), timestamp_field="event_time"),
    )
    store.apply([flight, view])
    store.write_to_online_store("points", frame)
    asked = [f"points:{name}" for name in names]
    began, taken = time.perf_counter(), []
    for number in range(RATE * (SECONDS + 1)):
        time.sleep(max(0.0, began + number / RATE - time.perf_counter()))
        start = time.perf_counter()
        told = store.get_online_features(features=asked, entity_rows=[{"flight": number % len(frame)}]).to_dict()
        if number >= RATE:  # the first second does not count
            taken.append((time.perf_counter() - start) * 1000)
        assert len(told) == len(names) + 1
    print(json.dumps({"p50_ms": float(np.percentile(taken, 50)), "p99_ms": float(np.percentile(taken, 99))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
