"""The two feature engines on the same rows, in turns: DuckDB in this process, Spark by `SPARK_MASTER` or on all cores.

    python -m benchmarks.engines [--weeks 4 8] [--rounds 2]

The whole definition of flights on real rows, from Parquet to Arrow. The tables are equal, or this ends. Spark is
started and warmed up before: a build pays for neither. Its processor time is this process' and Java's.
"""

import argparse
import tempfile
from datetime import timedelta
from importlib import import_module
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

import features
from benchmarks.table import Measured, keep, table
from pipeline.partitions import Interval

NAMES = {"duckdb": "DuckDB", "spark": "Spark"}
LEAD = timedelta(hours=2)
HISTORY_WEEKS = 5


def _java_seconds() -> float:
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return sum(each.user + each.system for each in times)


def compare(weeks: int, rounds: int, into: Path) -> None:
    """Measure so many weeks of points, after five of history."""
    clean = import_module("tests.clean_data")  # what validation would let through; not a package
    definition = features.definition("flights")
    span = Interval(clean.week(HISTORY_WEEKS).start, clean.week(HISTORY_WEEKS + weeks - 1).end)
    found = {engine: Measured(name=name) for engine, name in NAMES.items()}
    with tempfile.TemporaryDirectory(prefix="windsock-bench-") as folder:
        paths = {name: [Path(folder) / f"{name}.parquet"] for name in definition.sources}
        for name, (path,) in paths.items():
            rows = [clean.clean_rows(name, clean.week(n)) for n in range(HISTORY_WEEKS + weeks)]
            pq.write_table(pa.concat_tables(rows), path)
        first = Interval(span.start, span.start + timedelta(days=1))
        features.build(definition, paths, first, LEAD, engine="spark")
        for _ in range(rounds):
            made = {}
            for engine, one in found.items():
                java = _java_seconds()
                with one.timed():
                    made[engine] = features.build(definition, paths, span, LEAD, engine=engine)
                one.processor[-1] += _java_seconds() - java
            assert made["duckdb"] == made["spark"], "the engines differ"
    about = {"points": made["duckdb"][0].num_rows, "features": len(definition.numeric + definition.categorical)}
    print(f"\n{about}\n{table(list(found.values()), ours=NAMES['duckdb'])}", flush=True)
    print(keep(f"engines, {weeks} weeks", list(found.values()), into, **about))


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__)
    parser.add_argument("--weeks", type=int, nargs="+", default=[4])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--into", type=Path, default=Path("benchmarks/results"))
    told = parser.parse_args()
    for weeks in told.weeks:
        compare(weeks, told.rounds, told.into)


if __name__ == "__main__":
    main()
