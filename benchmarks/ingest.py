"""One partition out of a source database into Parquet: our COPY against pandas' read_sql, the same rows and order.

    python -m benchmarks.ingest [--rows 1000000] [--rounds 3]

The table is the operator's `flights` of 2013, repeated, in a PostgreSQL of the embedded stack. Everyone ends with the
bytes of a Parquet file, sorted by the table's key: what is put into the lake, which is the same for all.
"""

import argparse
import io
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import pyarrow as pa

from adapters.parquet import from_bytes, ordered, to_bytes
from adapters.warehouse import Warehouse
from benchmarks.table import Measured, keep, table
from infra.local.stack import Stack
from infra.replay import flights_source
from pipeline.settings import REPOSITORY
from pipeline.spec import use_cases
from tasks.ingest.source_rows import extraction

OURS, THEIRS = "COPY, Arrow (ours)", "pandas read_sql"
START, END = datetime(2012, 1, 1, tzinfo=UTC), datetime(2015, 1, 1, tzinfo=UTC)
FLIGHTS = use_cases(REPOSITORY / "params.yaml")["flights"].source.tables["flights"]


def ours(source: Warehouse) -> bytes:
    """As `tasks.ingest.land` lands a table."""
    with source.transaction(snapshot=True) as at:
        rows = source.copy_out(extraction("flights", FLIGHTS), (START, END), at=at)
    return to_bytes(ordered(rows, FLIGHTS.key))


def pandas(source: Warehouse) -> bytes:
    """As one writes it."""
    import pandas as pd
    import sqlalchemy

    engine = sqlalchemy.create_engine("postgresql+psycopg2://", creator=source._connect)  # noqa: SLF001
    query = sqlalchemy.text("select * from flights where known_at >= :start and known_at < :end")
    with engine.connect() as connection:
        frame = pd.read_sql_query(query, connection, params={"start": START, "end": END})
    sink = io.BytesIO()
    frame.sort_values(list(FLIGHTS.key)).to_parquet(sink, index=False, compression="zstd")
    return sink.getvalue()


CONTESTANTS: Mapping[str, Callable[[Warehouse], bytes]] = {OURS: ours, THEIRS: pandas}


def same(contents: Mapping[str, bytes]) -> int:
    """How many rows everyone wrote; AssertionError where they are others, or in another order."""
    reference = from_bytes(contents[OURS])
    for name, content in contents.items():
        rows: pa.Table = from_bytes(content).cast(reference.schema)
        assert rows.equals(reference), f"{name} wrote other rows"
    return int(reference.num_rows)


def repeat(source: Warehouse, rows: int) -> None:
    """At least so many flights: those of the year, again under other numbers."""
    with source.transaction() as at:
        at.execute("select count(*) from flights")
        [year] = at.fetchone() or (0,)
        for number in range(1, -(-rows // year)):
            at.execute(
                "insert into flights select carrier, flight + %s, tailnum, origin, dest, scheduled_departure,"
                " scheduled_arrival, distance_miles, known_at from flights where flight <= 10000",
                (10_000 * number,),
            )


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--into", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    measured = {name: Measured(name=name) for name in CONTESTANTS}
    with tempfile.TemporaryDirectory(prefix="windsock-bench-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as nobody where this runs as root
        stack = Stack(Path(folder) / "home")
        try:
            stack.start(("postgres",))
            source = Warehouse(stack.home().dsn("source"))
            flights_source.load_flights(source.dsn)
            repeat(source, asked.rows)
            contents: dict[str, bytes] = {}
            for _ in range(asked.rounds):
                for name, contestant in CONTESTANTS.items():
                    with measured[name].timed():
                        contents[name] = contestant(source)
        finally:
            stack.stop()
    rows = same(contents)
    for one in measured.values():
        one.facts["rows/s"] = f"{rows / median(one.wall):,.0f}"
    print(table(list(measured.values()), ours=OURS))
    print(keep(f"ingest, {rows} rows", list(measured.values()), asked.into, rows=rows))


if __name__ == "__main__":
    main()
