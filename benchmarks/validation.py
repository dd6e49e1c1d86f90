"""Validation of one large table: ours against Great Expectations on pandas, the same expectations and failing rows.

    python -m benchmarks.validation [--rows 10000000] [--rounds 3]

The rows are the flights of 2013, repeated under other carriers; the expectations are the product's suite for them, all
24, and one more. A few thousand rows are spoilt in three ways. Everyone reads Parquet and ends with which rows fail
what.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.table import Measured, keep, table
from expectations import suites
from expectations.vocabulary import Expect, content_expectations, delivery_expectations, expect_rows
from pipeline.partitions import Interval
from pipeline.settings import REPOSITORY
from pipeline.spec import use_cases
from tasks.ingest import suite_run

OURS, THEIRS, COUNTS = "on Arrow (ours)", "GX on pandas", "GX on pandas, no positions"
YEAR = Interval(datetime(2012, 12, 31, tzinfo=UTC), datetime(2014, 1, 1, tzinfo=UTC))
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
FROM_NEW_YORK = expect_rows(
    "ExpectColumnValuesToBeInSet", "they leave from New York", column="origin", value_set=["EWR", "JFK", "LGA"]
)
Found = dict[int, set[int]]  # expectation -> positions of the rows that fail it


def rows(count: int, *, weeks: int = 53) -> pa.Table:
    """Flights, repeated under carriers of their own, some of them spoilt."""
    clean = import_module("tests.clean_data")  # what validation would let through of the year; not a package
    flights = pa.concat_tables([clean.clean_rows("flights", clean.week(n)) for n in range(weeks)])
    names = sorted(set(flights["carrier"].to_pylist()))
    codes = pc.index_in(flights["carrier"], value_set=pa.array(names)).to_numpy()
    parts = []
    for number in range(-(-count // flights.num_rows)):
        carriers = pa.array([_code(number * len(names) + i) for i in range(len(names))])
        parts.append(flights.set_column(0, "carrier", carriers.take(pa.array(codes))))
    return spoilt(pa.concat_tables(parts).slice(0, count).combine_chunks())


def _code(number: int) -> str:
    return _LETTERS[number // 36] + _LETTERS[number % 36]


def spoilt(flights: pa.Table) -> pa.Table:
    """One row in ten thousand has a distance below zero, an airport in small letters, or is due before it leaves."""
    number = np.arange(flights.num_rows)
    faults = {
        "distance_miles": (number % 30_000 == 7, pa.scalar(-1.0)),
        "dest": (number % 30_000 == 11_111, pa.scalar("ewr")),
        "scheduled_arrival": (number % 30_000 == 22_222, flights["known_at"]),
    }
    for name, (where, value) in faults.items():
        column = pc.if_else(pa.array(where), value, flights[name])
        flights = flights.set_column(flights.column_names.index(name), name, column)
    return flights


def asked(count: int) -> tuple[Expect, ...]:
    """The suite, for a table of so many rows, and one expectation more."""
    limits = use_cases(REPOSITORY / "params.yaml")["flights"].source.tables["flights"]
    suite, roomy = suites("flights")["flights"], limits.model_copy(update={"min_rows": 1, "max_rows": count})
    return (*delivery_expectations(suite, roomy), *content_expectations(suite, roomy, YEAR), FROM_NEW_YORK)


def ours(path: Path, expects: Sequence[Expect]) -> Found:
    """Counts for all, positions of what failed: as `tasks.ingest.check` asks."""
    read = pq.read_table(path)
    first = suite_run.run_suite(read, expects, complete=False)
    failed = [position for position, outcome in enumerate(first.outcomes) if outcome.failed_rows]
    again = suite_run.run_suite(read, [expects[position] for position in failed], complete=True)
    return {position: set(outcome.positions) for position, outcome in zip(failed, again.outcomes, strict=True)}


def theirs(path: Path, expects: Sequence[Expect], *, complete: bool = True) -> Found:
    """Great Expectations, asked for everything at once."""
    import pandas as pd

    results = suite_run.run_by_gx(
        suite_run.load_great_expectations(), pd.read_parquet(path), dict(enumerate(expects)), complete=complete
    )
    found = {position: set(result.result.get("unexpected_index_list") or ()) for position, result in results.items()}
    return {position: rows_ for position, rows_ in found.items() if rows_}


CONTESTANTS: Mapping[str, Callable[[Path, Sequence[Expect]], Found]] = {
    OURS: ours,
    THEIRS: theirs,
    COUNTS: lambda path, expects: theirs(path, expects, complete=False),
}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.validation", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--into", type=Path, default=Path("benchmarks/results"))
    told = parser.parse_args()
    expects = asked(told.rows)
    suite_run.load_great_expectations()  # the import is nobody's work
    measured = {name: Measured(name=name) for name in CONTESTANTS}
    with tempfile.TemporaryDirectory(prefix="windsock-bench-") as folder:
        path = Path(folder) / "flights.parquet"
        pq.write_table(rows(told.rows), path)
        found: dict[str, Found] = {}
        for _ in range(told.rounds):
            for name, contestant in CONTESTANTS.items():
                with measured[name].timed():
                    found[name] = contestant(path, expects)
    assert found[OURS] == found[THEIRS], "other rows fail"
    for one in measured.values():
        one.facts["rows/s"] = f"{told.rows / median(one.wall):,.0f}"
    failing = {expects[position].reason: len(positions) for position, positions in found[OURS].items()}
    print(f"{told.rows:,} rows, {len(expects)} expectations; failing: {failing}")
    print(table(list(measured.values()), ours=OURS))
    about = {"rows": told.rows, "expectations": len(expects), "failing": failing}
    print(keep(f"validation, {told.rows} rows", list(measured.values()), told.into, **about))


if __name__ == "__main__":
    main()
