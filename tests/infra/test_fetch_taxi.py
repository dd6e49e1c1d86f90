"""The taxi trips are fetched by one command, checked, kept; and where that is not possible it is said what to do."""

import hashlib
import io
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from infra.replay import fetch_taxi
from infra.replay.fetch_taxi import convert, fetch_trips, load_trips, read_kept, require_trips

HEADER = (
    "vendor_id,pickup_datetime,dropoff_datetime,passenger_count,trip_distance,rate_code_id,store_and_fwd_flag,"
    "pickup_location_id,dropoff_location_id,payment_type\n"
)
MONTHS = [f"{year}-{month:02}" for year in (2018, 2019, 2020) for month in range(1, 13)]
PLACE = "great_expectations-1.24.1/tests/test_sets/taxi_yellow_tripdata_samples"


def make_archive(folder: Path, months: list[str] = MONTHS) -> Path:
    """An archive as the package's, of three trips a month: one of another year, one without vendor."""
    path = folder / "great_expectations-1.24.1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for month in months:
            lines = (
                f"2.0,{month}-04 01:30:00,{month}-04 01:45:30,1.0,2.5,1.0,N,161,237,1.0\n"
                "1,2003-01-01 00:00:00,2003-01-01 00:10:00,1,1.0,1,N,1,2,1\n"
                f",{month}-15 12:00:00,{month}-15 12:20:00,,3.0,,,14,39,\n"
            )
            for place in (PLACE, f"{PLACE}/random_subsamples"):
                content = (HEADER + lines).encode()
                member = tarfile.TarInfo(f"{place}/yellow_tripdata_sample_{month}.csv")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = make_archive(tmp_path)
    monkeypatch.setattr(fetch_taxi, "ARCHIVE_SHA256", hashlib.sha256(made.read_bytes()).hexdigest())
    monkeypatch.setattr(fetch_taxi, "TRIPS", 108)
    return made


def test_what_is_fetched_is_kept_once_and_read_again(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    kept = fetch_trips(folder, archive)
    assert (kept["trips"], kept["left_out"]) == (72, 36)
    assert read_kept(folder) == kept
    first, second = load_trips(folder).slice(0, 2).to_pylist()
    assert first["trip_id"] == "2018-01-00000"
    assert first["pickup_at"] == datetime(2018, 1, 4, 6, 30, tzinfo=UTC)
    assert first["dropoff_at"] - first["pickup_at"] == timedelta(minutes=15, seconds=30)
    assert (second["trip_id"], second["vendor_id"], second["passenger_count"]) == ("2018-01-00002", None, None)


def test_an_hour_that_comes_twice_is_its_first_one(archive: Path) -> None:
    """On 4 November 2018 the clocks of New York show 01:30 at 05:30 and at 06:30 UTC."""
    trips, _ = convert(archive)
    [found] = [row for row in trips.to_pylist() if row["trip_id"] == "2018-11-00000"]
    assert found["pickup_at"] == datetime(2018, 11, 4, 5, 30, tzinfo=UTC)


def test_an_archive_with_another_digest_is_refused_and_nothing_is_kept(archive: Path, tmp_path: Path) -> None:
    with archive.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="is not the archive that is expected: its SHA-256 is"):
        fetch_trips(tmp_path / "kept", archive)
    assert not (tmp_path / "kept").exists()


def test_an_archive_without_a_month_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected 360000 trips of 36 months, got 105 of 35"):
        convert(make_archive(tmp_path, MONTHS[1:]))


@pytest.mark.usefixtures("processes")
def test_an_offline_machine_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "RETRIES": "0", "CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ValueError, match=r"could not be fetched; pip said: .*(.|\n)*run `make taxi-data ARCHIVE=<file>`"
    ):
        fetch_trips(tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_an_archive_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no archive"):
        fetch_trips(tmp_path / "kept", tmp_path / "nothing.tar.gz")


def test_trips_that_are_not_there_or_damaged_are_told_with_the_command(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with pytest.raises(ValueError, match="run `make taxi-data`, which fetches them once"):
        require_trips(folder)
    fetch_trips(folder, archive)
    assert require_trips(folder) == folder / "taxi.parquet"
    content = bytearray((folder / "taxi.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "taxi.parquet").write_bytes(bytes(content))
    with pytest.raises(ValueError, match="is damaged: delete it, and run `make taxi-data` again"):
        load_trips(folder)


def test_trips_of_another_archive_count_as_none(archive: Path, tmp_path: Path, monkeypatch) -> None:
    fetch_trips(tmp_path / "kept", archive)
    monkeypatch.setattr(fetch_taxi, "ARCHIVE_SHA256", "1" * 64)
    assert read_kept(tmp_path / "kept") is None
