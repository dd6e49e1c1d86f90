"""Predictions into PostgreSQL: what `tasks.score` does, COPY and upsert, and a swap, against what psycopg2 offers.

    python -m benchmarks.writes [--rows 300000] [--rounds 3]

The table is the product's own (`predictions`, with its two indexes, another version's rows in it), in a PostgreSQL of
the embedded stack. Everyone begins with the same Arrow table and ends with a commit. Ours takes rows straight in that
are new or replace another snapshot's, and upserts where some may be there as they are. executemany writes a tenth of
the rows, and its seconds are times ten. The swap is not in the product, whose table has no partitions: it is what they
would give, a table of its own that gets its indexes when it is full and becomes a partition in the same transaction.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from psycopg2 import sql
from psycopg2.extras import execute_values

from adapters.warehouse import Warehouse
from benchmarks.table import Measured, keep, table
from infra.local.stack import Stack
from tasks.score import KEY, write_predictions

if TYPE_CHECKING:
    from psycopg2.extensions import cursor

OURS, UPSERT, SWAP = "as tasks.score writes (ours)", "COPY and upsert", "COPY and a partition swapped in"
MANY, MANY_SHARE = "executemany", 0.1
VERSION, HISTORY = "2", "1"
_PAGE_ROWS = 10_000
_FLIGHTS_AN_HOUR = 40
Write = Callable[["cursor", pa.Table], object]


def predictions(rows: int, *, version: str = VERSION) -> pa.Table:
    """Rows as `tasks.score` makes them: forty flights an hour, in the order of their times."""
    draw = np.random.default_rng(rows)
    moment = 1_356_998_400_000_000 + (np.arange(rows) // _FLIGHTS_AN_HOUR) * 3_600_000_000
    departure = pa.array(moment).cast(pa.timestamp("us", "UTC"))
    return pa.table(
        {
            "use_case": pa.repeat("flights", rows),
            "entity_key": [f"UA{number}-EWR-IAH" for number in (np.arange(rows) % _FLIGHTS_AN_HOUR).tolist()],
            "event_time": departure,
            "model_version": pa.repeat(version, rows),
            "prediction_time": pc.subtract(departure, pa.scalar(7_200_000_000, pa.duration("us"))),
            "score": draw.random(rows),
            "snapshot_version": pa.repeat("0" * 32, rows),
        }
    )


def ours(at: "cursor", rows: pa.Table) -> None:
    """What scoring a partition does."""
    first, last = (pc.min_max(rows["prediction_time"])[which].as_py() for which in ("min", "max"))
    write_predictions(at, rows, ("flights", VERSION, first, last + timedelta(hours=1)), Warehouse(""))


def upsert(at: "cursor", rows: pa.Table) -> None:
    """What it does where this version has scored already."""
    Warehouse("").upsert(at, "predictions", rows, KEY)


def swap(at: "cursor", rows: pa.Table) -> None:
    """A partition by model version, as it would be: what it may hold is known from the start, so none is looked at."""
    at.execute("create table swapped (like predictions including defaults including constraints)")
    at.execute(f"alter table swapped add check (model_version is not null and model_version = '{VERSION}')")
    assert Warehouse("").insert(at, "swapped", rows, KEY)
    at.execute(f"alter table swapped add primary key ({', '.join(KEY)})")
    at.execute("create index on swapped using brin (prediction_time) with (pages_per_range = 32, autosummarize = on)")
    at.execute(f"alter table partitioned attach partition swapped for values in ('{VERSION}')")


def by_values(at: "cursor", rows: pa.Table) -> None:
    """psycopg2's fast helper: many rows a statement."""
    execute_values(at, _upsert(rows, "%s"), _tuples(rows), page_size=_PAGE_ROWS)


def by_many(at: "cursor", rows: pa.Table) -> None:
    """One statement a row, as the database API has it."""
    at.executemany(_upsert(rows, "(" + ", ".join(["%s"] * rows.num_columns) + ")"), _tuples(rows))


def _tuples(rows: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in rows.columns), strict=True))


def _upsert(rows: pa.Table, values: str) -> sql.Composed:
    others = [name for name in rows.column_names if name not in KEY]
    return sql.SQL("insert into predictions ({}) values {} on conflict ({}) do update set {}").format(
        sql.SQL(", ").join(map(sql.Identifier, rows.column_names)),
        sql.SQL(values),
        sql.SQL(", ").join(map(sql.Identifier, KEY)),
        sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in others),
    )


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Rows to write where others are already, and who writes them."""

    before: pa.Table
    rows: pa.Table
    writers: Mapping[str, Write]


def scenarios(rows: int) -> dict[str, Scenario]:
    """By name."""
    new = predictions(rows)
    rebuilt = {"score": pc.subtract(1.0, new["score"]), "snapshot_version": pa.repeat("1" * 32, rows)}
    other = pa.table({name: rebuilt.get(name, new[name]) for name in new.column_names})
    writers = {OURS: ours, "execute_values": by_values, MANY: by_many}
    return {
        "new rows": Scenario(before=new.slice(0, 0), rows=new, writers={UPSERT: upsert, SWAP: swap, **writers}),
        "rows of a rebuilt snapshot": Scenario(before=other, rows=new, writers={UPSERT: upsert, **writers}),
        "rows as they are": Scenario(before=new, rows=new, writers=writers),
    }


def prepare(warehouse: Warehouse, before: pa.Table, history: pa.Table) -> None:
    """The table as it is before someone writes."""
    with warehouse.transaction() as at:
        at.execute("truncate predictions")
        at.execute("drop table if exists partitioned")
        at.execute("create table partitioned (like predictions including all) partition by list (model_version)")
        upsert(at, history)
        upsert(at, before)
    warehouse.execute("analyze predictions")


def run(warehouse: Warehouse, rows: int, rounds: int) -> dict[str, list[Measured]]:
    """Everyone in turn, in each scenario."""
    history = predictions(rows, version=HISTORY)
    found = {}
    for what, scenario in scenarios(rows).items():
        measured = {name: Measured(name=name) for name in scenario.writers}
        for _ in range(rounds):
            for name, writer in scenario.writers.items():
                prepare(warehouse, scenario.before, history)
                share = MANY_SHARE if name == MANY else 1.0
                part = scenario.rows.slice(0, round(rows * share))
                with measured[name].timed(share=share), warehouse.transaction() as at:
                    writer(at, part)
        for one in measured.values():
            one.facts["rows/s"] = f"{rows / median(one.wall):,.0f}"
        found[what] = list(measured.values())
        print(f"\n{what}\n{table(found[what], ours=OURS)}", flush=True)
    return found


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.writes", description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--into", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="windsock-bench-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as nobody where this runs as root
        stack = Stack(Path(folder) / "home")
        try:
            stack.start(("postgres",))
            found = run(Warehouse(stack.home().dsn("warehouse")), asked.rows, asked.rounds)
        finally:
            stack.stop()
    for what, measured in found.items():
        print(keep(f"writes, {what}", measured, asked.into, rows=asked.rows))


if __name__ == "__main__":
    main()
