"""Point-in-time features of flights: our engine against pandas with rolling sums and merge_asof, the same values.

    python -m benchmarks.feature_build [--replicas 1 9] [--rounds 3] [--only NAME]

The rows are the year 2013, and replicas of it with airlines, airports and planes of their own. The features are all
numbers of the product's definition but those that count schedule entries or follow a plane's legs; labels are not made.
Everyone reads Parquet, in a process of its own whose peak memory is told.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import features
from benchmarks.table import Measured, keep, table
from features.engine import FeatureSet

OURS, ROLLING = "feature engine (ours)", "pandas, rolling and merge_asof"
RUNNING = "pandas, running totals and merge_asof"
LEAD = timedelta(hours=2)
TABLES = ("flights", "movements", "weather", "planes", "airports")
OF_REPLICA = ("carrier", "origin", "dest", "tailnum", "faa")  # what a replica has of its own
LEFT_OUT = {"due", "entries", "legs"}  # streams of schedule entries
_KEYS = ["entity_key", "event_time"]
_STEPS = 2
_NO_LABELS = "select '' as entity_key, known_at as event_time, 0 as label, known_at as label_time from flights limit 0"


@dataclass(frozen=True)
class Year:
    """All of 2013, and the days around it that belong to its weeks."""

    start: datetime = datetime(2012, 12, 31, tzinfo=UTC)
    end: datetime = datetime(2014, 1, 2, tzinfo=UTC)  # New York's year ends at five in the morning


def definition() -> FeatureSet:
    """The part of the product's definition that both build."""
    whole = features.definition("flights")
    windows = tuple(window for window in whole.windows if window.stream not in LEFT_OUT)
    absent = [window.prefix for window in whole.windows if window not in windows] + [j.prefix for j in whole.joined]
    reads = re.compile(rf"\b({'|'.join(absent)})[_.]")
    return replace(
        whole,
        steps={name: sql for name, sql in whole.steps.items() if name not in LEFT_OUT} | {"labels": _NO_LABELS},
        windows=windows,
        joined=(),
        numeric_sql={name: sql for name, sql in whole.numeric_sql.items() if not reads.search(sql)},
        categorical_sql={},
    )


def sources(replicas: int, folder: Path, *, weeks: int = 53) -> int:
    """The tables of so many weeks, clean, as Parquet; the number of flights."""
    clean = import_module("tests.clean_data")  # what validation would let through of the year; not a package
    for name in TABLES:
        rows = pa.concat_tables([clean.clean_rows(name, clean.week(n)) for n in range(weeks)])
        with pq.ParquetWriter(folder / f"{name}.parquet", rows.schema) as writer:
            for number in range(replicas):
                writer.write_table(replica(rows, number))
    return int(pq.read_metadata(folder / "flights.parquet").num_rows)


def replica(rows: pa.Table, number: int) -> pa.Table:
    """The same rows of other airports and planes: `EWR#7`."""
    for name in OF_REPLICA:
        if number and name in rows.column_names:
            named = pc.binary_join_element_wise(rows[name], f"#{number}", "")
            rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), named)
    return rows


def engine(folder: Path) -> pa.Table:
    """Ours."""
    paths = {name: [folder / f"{name}.parquet"] for name in TABLES}
    points, _ = features.build(definition(), paths, Year(), LEAD)
    return points


def pandas(folder: Path, sums: str = "rolling") -> pa.Table:
    """A competent user's."""
    from benchmarks.contenders import pandas_features

    made = pandas_features.build(folder, LEAD, getattr(pandas_features, sums))
    return pa.Table.from_pandas(made, preserve_index=False)


CONTESTANTS: dict[str, Callable[[Path], pa.Table]] = {
    OURS: engine,
    ROLLING: pandas,
    RUNNING: partial(pandas, sums="running"),
}


def furthest(ours: pa.Table, theirs: pa.Table) -> float:
    """The largest difference between any two features of one point, in units of float32's precision at its size."""
    order = [(name, "ascending") for name in ("prediction_time", *_KEYS)]
    ours, theirs = ours.sort_by(order), theirs.select(ours.column_names).cast(ours.schema).sort_by(order)
    assert ours.select(_KEYS).equals(theirs.select(_KEYS)), "other points"
    worst = 0.0
    for name in definition().numeric:
        a, b = (rows[name].to_numpy().astype(np.float64) for rows in (ours, theirs))
        assert (np.isnan(a) == np.isnan(b)).all(), f"{name} is missing elsewhere"
        difference = np.abs(a - b) / np.maximum(np.abs(a), 1.0) / np.finfo(np.float32).eps
        worst = max(worst, float(np.nanmax(difference, initial=0.0)))
    return worst


def child(name: str, folder: Path, keep_rows: Path | None) -> None:
    """One contestant, once: what it took, as JSON."""
    import pandas as _  # noqa: F401  # imports are nobody's work

    # The kernel's mark of this program alone: getrusage begins with what the parent took.
    Path("/proc/self/clear_refs").write_text("5")
    before = _memory_mb("VmRSS")
    one = Measured(name=name)
    with one.timed():
        rows = CONTESTANTS[name](folder)
    peak = _memory_mb("VmHWM")
    if keep_rows is not None:
        pq.write_table(rows, keep_rows)
    print(json.dumps({"wall": one.wall[0], "cpu": one.processor[0], "mb": peak - before}))


def _memory_mb(what: str) -> float:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) / 1024


def measured(name: str, folder: Path, rounds: int, flights: int, *, keep_rows: Path | None) -> Measured:
    """A contestant, each time in a process of its own."""
    found = []
    for _ in range(rounds):
        command = [sys.executable, "-m", "benchmarks.feature_build", "--child", name, "--folder", str(folder)]
        command += ["--keep", str(keep_rows)] if keep_rows else []
        found.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    return Measured(
        name=name,
        wall=[one["wall"] for one in found],
        processor=[one["cpu"] for one in found],
        facts={
            "rows/s": f"{flights / median(one['wall'] for one in found):,.0f}",
            "peak MB": f"{median(one['mb'] for one in found):,.0f}",
        },
    )


def compare(replicas: int, rounds: int, names: Sequence[str], into: Path) -> None:
    """Measure one size, check that the values are the same, print, keep."""
    with tempfile.TemporaryDirectory(prefix="windsock-bench-") as made:
        folder = Path(made)
        (folder / "in").mkdir()
        flights = sources(replicas, folder / "in")
        kept = {name: folder / f"{number}.parquet" for number, name in enumerate(names)}
        found = [measured(name, folder / "in", rounds, flights, keep_rows=kept[name]) for name in names]
        about: dict[str, float] = {"flights": flights, "features": len(definition().numeric)}
        others = [name for name in names if name != OURS]
        for name in others if OURS in names else []:
            apart = furthest(pq.read_table(kept[OURS]), pq.read_table(kept[name]))
            assert apart <= _STEPS, f"{name} finds other features"
            about[f"float32 steps from {name}"] = apart
    print(f"\n{about}\n{table(found, ours=OURS)}", flush=True)
    print(keep(f"features, {replicas} replicas", found, into, **about))


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.feature_build", description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 9])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=CONTESTANTS, nargs="+", default=list(CONTESTANTS))
    parser.add_argument("--into", type=Path, default=Path("benchmarks/results"))
    for name, kind in {"--child": str, "--folder": Path, "--keep": Path}.items():
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.child:
        child(told.child, told.folder, told.keep)
        return
    for replicas in told.replicas:
        compare(replicas, told.rounds, told.only, told.into)


if __name__ == "__main__":
    main()
