"""Archives, and what the adapter says when there is no server; with one: tests/infra/test_torchserve.py."""

import json
import os
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest

from adapters.endpoint import Endpoint
from adapters.errors import Unavailable
from adapters.model_store import Archive, ModelStore
from serving import launch
from serving.answers import ServingOptions
from tests.serving.online import OPTIONS


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "card.json").write_text(json.dumps({"features": {"digest": "d"}}))
    (folder / "features.json").write_text("{}")
    (folder / "weights.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def endpoint(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{probe.getsockname()[1]}"
    return Endpoint(nobody, nobody, ModelStore(tmp_path / "store"))


def archive(endpoint: Endpoint, folder: Path, version: str = "3", **options: object) -> Archive:
    return endpoint.store.archive(
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
            "MAR-INF/MANIFEST.json",
            "bundle/card.json",
            "bundle/features.json",
            "bundle/weights.safetensors",
            "options.json",
        ]
        options = ServingOptions.from_document(json.loads(opened.read("options.json")))
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
    endpoint.store.folder.mkdir()
    deployed = {"versions": [entry(archive(endpoint, folder))]}
    (endpoint.store.folder / "deployed.json").write_text(json.dumps(deployed))
    with pytest.raises(ValueError, match="retire it first"):
        endpoint.register(
            archive(endpoint, folder, max_events=7), batch_size=1, max_batch_delay_ms=0, workers=1
        )  # fmt: skip


@pytest.fixture
def torchserve(endpoint):
    """Stands in for the server: what it has loaded (version -> archive), its default, and what it was told."""
    state = SimpleNamespace(loaded={}, default=None, told=[], refuses=False)

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, document: object) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            ready = [{"status": "READY"}]
            self._answer(200, [{"modelVersion": version, "workers": ready} for version in state.loaded])

        def do_POST(self) -> None:
            [file] = parse_qs(urlsplit(self.path).query)["url"]
            version = file.split("-")[1]
            known = state.loaded.setdefault(version, file) if not state.refuses else None
            self._answer(400 if state.refuses else 200 if known is file else 409, {"message": "no"})

        def do_PUT(self) -> None:
            if self.path.endswith("set-default"):
                state.default = self.path.split("/")[-2]
            self._answer(202, {})

        def do_DELETE(self) -> None:
            version = self.path.split("/")[-1]
            if version != state.default:
                del state.loaded[version]
            self._answer(403 if version == state.default else 200, {"message": "Cannot remove default version"})

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        state.endpoint = Endpoint(url, url, endpoint.store)
        yield state
        server.shutdown()
        thread.join()


SETTINGS = {"batch_size": 1, "max_batch_delay_ms": 0, "workers": 1}


def archives(endpoint: Endpoint) -> set[str]:
    return {path.name for path in endpoint.store.folder.glob("*.mar")}


def test_what_was_loaded_and_not_remembered_is_never_taken_for_another_archive(torchserve, folder):
    """Also where the server holds it for the default, which it does of the first that it ever saw."""
    first = archive(torchserve.endpoint, folder)
    torchserve.loaded["3"], torchserve.default = first.path.name, "3"  # and here the deployment died
    other = archive(torchserve.endpoint, folder, "4")
    torchserve.endpoint.register(other, **SETTINGS)
    made = archive(torchserve.endpoint, folder, max_events=7)
    torchserve.endpoint.register(made, **SETTINGS)
    assert torchserve.loaded == {"4": other.path.name, "3": made.path.name}
    assert archives(torchserve.endpoint) == {other.path.name, made.path.name}


def test_what_was_loaded_and_remembered_is_left_alone(torchserve, folder):
    made = archive(torchserve.endpoint, folder)
    torchserve.endpoint.register(made, **SETTINGS)
    torchserve.refuses = True  # whatever it would be asked to load
    torchserve.endpoint.register(made, **SETTINGS)
    assert archives(torchserve.endpoint) == {made.path.name}


def test_the_archive_of_a_version_that_was_refused_is_not_kept_and_the_deployed_one_is(torchserve, folder):
    deployed = archive(torchserve.endpoint, folder)
    torchserve.endpoint.register(deployed, **SETTINGS)
    torchserve.refuses = True
    with pytest.raises(ValueError, match="registering flights 4"):
        torchserve.endpoint.register(archive(torchserve.endpoint, folder, "4"), **SETTINGS)
    torchserve.loaded.clear()
    with pytest.raises(ValueError, match="registering flights 3"):  # it is to be loaded again at the next start
        torchserve.endpoint.register(deployed, **SETTINGS)
    assert archives(torchserve.endpoint) == {deployed.path.name}


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
    assert not (endpoint.store.folder / "deployed.json").exists()


def test_a_server_that_never_answers_is_left(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unavailable, match="timed out"):
            Endpoint(url, url, ModelStore(tmp_path)).ask("flights", "3", [{}], request_id="r", timeout_seconds=0.2)


def test_what_is_remembered_is_what_launch_reads(endpoint, folder, monkeypatch):
    monkeypatch.setattr(launch.features, "definition", lambda _: type("D", (), {"digest": lambda _: "d"})())
    for version in ("3", "4"):
        endpoint.store.remember({k: v for k, v in entry(archive(endpoint, folder, version)).items() if k != "default"})
    found = launch.list_loadable_versions(endpoint.store.folder)
    assert [(one["version"], one["default"]) for one in found] == [("3", True), ("4", False)]


def test_changes_of_what_is_deployed_do_not_get_lost_beside_each_other(endpoint, folder):
    versions = [str(n) for n in range(12)]
    made = [entry(archive(endpoint, folder, version)) for version in versions]
    threads = [threading.Thread(target=endpoint.store.remember, args=(one,)) for one in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one["version"] for one in endpoint.store.entries()} == set(versions)
    assert sum(one["default"] for one in endpoint.store.entries()) == 1
