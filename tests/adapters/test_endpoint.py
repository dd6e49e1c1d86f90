"""Archives, and what the adapter says when there is no server; with one: tests/infra/test_torchserve.py."""

import json
import os
import socket
import threading
import zipfile
from pathlib import Path

import pytest

from adapters.endpoint import Archive, Endpoint, Unavailable
from serving import launch
from serving.answers import Options
from tests.serving.online import OPTIONS


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "card.json").write_text(json.dumps({"features": {"digest": "d"}}))
    (folder / "weights.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def endpoint(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    return Endpoint(nobody, nobody, tmp_path / "store")


def archive(endpoint: Endpoint, folder: Path, version: str = "3", **options: object) -> Archive:
    return endpoint.archive(
        folder, use_case="flights", version=version, bundle_sha256="s", options={**OPTIONS, **options}
    )


def entry(made: Archive, *, default: bool = False) -> dict[str, object]:
    about = {"batch_size": 64, "max_batch_delay_ms": 1, "workers": 1, "default": default}
    return {
        "use_case": made.use_case, "version": made.version, "file": made.path.name, "sha256": made.sha256, **about
    }  # fmt: skip


def test_the_same_bundle_makes_the_same_archive_whenever_it_is_made(endpoint, folder):
    first = archive(endpoint, folder)
    content = first.path.read_bytes()
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    assert archive(endpoint, folder) == first
    assert first.path.read_bytes() == content


@pytest.mark.parametrize("change", ["options", "weights", "version"])
def test_another_content_makes_another_archive(endpoint, folder, change):
    first = archive(endpoint, folder)
    if change == "weights":
        (folder / "weights.safetensors").write_bytes(b"other")
    second = archive(
        endpoint, folder, "4" if change == "version" else "3", **({"max_events": 7} if change == "options" else {})
    )
    assert first.sha256 != second.sha256
    assert first.path != second.path  # what is served is never written over


def test_an_archive_holds_data_only_and_options_the_server_understands(endpoint, folder):
    with zipfile.ZipFile(archive(endpoint, folder).path) as opened:
        assert sorted(opened.namelist()) == [
            "MAR-INF/MANIFEST.json", "bundle/card.json", "bundle/weights.safetensors", "options.json"
        ]  # fmt: skip
        options = Options.from_document(json.loads(opened.read("options.json")))
    assert (options.use_case, options.version, options.bundle_sha256) == ("flights", "3", "s")


def test_a_changed_archive_is_refused_before_the_server_hears_of_it(endpoint, folder):
    made = archive(endpoint, folder)
    made.path.write_bytes(made.path.read_bytes() + b"x")
    with pytest.raises(ValueError, match="expected"):
        endpoint.register(made, batch_size=1, max_batch_delay_ms=0, workers=1)
    made.path.unlink()
    with pytest.raises(ValueError, match="is not there"):
        endpoint.register(made, batch_size=1, max_batch_delay_ms=0, workers=1)


def test_another_archive_under_a_deployed_version_is_refused(endpoint, folder):
    (endpoint.store).mkdir()
    deployed = {"versions": [entry(archive(endpoint, folder))]}
    (endpoint.store / "deployed.json").write_text(json.dumps(deployed))
    with pytest.raises(ValueError, match="retire it first"):
        endpoint.register(
            archive(endpoint, folder, max_events=7), batch_size=1, max_batch_delay_ms=0, workers=1
        )  # fmt: skip


def test_a_server_that_is_not_there_is_unavailable_in_every_call(endpoint, folder):
    made = archive(endpoint, folder)
    calls = [
        lambda: endpoint.register(made, batch_size=1, max_batch_delay_ms=0, workers=1),
        lambda: endpoint.versions("flights"),
        lambda: endpoint.ask("flights", "3", [{}], request_id="r"),
        lambda: endpoint.retire("flights", "3"),
        lambda: endpoint.make_default("flights", "3"),
    ]
    for call in calls:
        with pytest.raises(Unavailable):
            call()
    assert not (endpoint.store / "deployed.json").exists()


def test_a_server_that_never_answers_is_left(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unavailable, match="timed out"):
            Endpoint(url, url, tmp_path).ask("flights", "3", [{}], request_id="r", timeout_seconds=0.2)


def test_what_is_remembered_is_what_launch_reads(endpoint, folder, monkeypatch):
    monkeypatch.setattr(launch.features, "definition", lambda _: type("D", (), {"digest": lambda _: "d"})())
    for version in ("3", "4"):
        endpoint._remember({k: v for k, v in entry(archive(endpoint, folder, version)).items() if k != "default"})
    found = launch.deployed(endpoint.store)
    assert [(one["version"], one["default"]) for one in found] == [("3", True), ("4", False)]


def test_changes_of_what_is_deployed_do_not_get_lost_beside_each_other(endpoint, folder):
    versions = [str(n) for n in range(12)]
    made = [entry(archive(endpoint, folder, version)) for version in versions]
    threads = [threading.Thread(target=endpoint._remember, args=(one,)) for one in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one["version"] for one in endpoint._read()} == set(versions)
    assert sum(one["default"] for one in endpoint._read()) == 1
