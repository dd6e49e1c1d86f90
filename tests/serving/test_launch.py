"""What the server is started with; that it starts: tests/infra/test_torchserve.py."""

import json
from pathlib import Path
from typing import Any

import pytest

import features
from adapters.model_store import Archive, ModelStore
from serving import launch
from tests.serving.online import OPTIONS


def deploy(
    store: Path, tmp_path: Path, *, digest: str | None = None, versions: tuple[str, ...] = ("3", "4")
) -> list[Archive]:
    """Two versions that were deployed; their bundles are cards only."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    card = {"features": {"digest": digest or features.definition("flights").digest()}}
    (folder / "card.json").write_text(json.dumps(card))
    (folder / "features.json").write_text("{}")
    models = ModelStore(store)
    made = []
    for version in versions:
        one = models.archive(folder, use_case="flights", version=version, bundle_sha256="s", options=OPTIONS)
        models.remember(
            {"use_case": "flights", "version": version, "file": one.path.name, "sha256": one.sha256,
             "batch_size": 64, "max_batch_delay_ms": 1, "workers": 2}
        )  # fmt: skip
        made.append(one)
    return made


def configured(store: Path, **changes: Any) -> dict[str, str]:
    addresses = {
        name: f"http://127.0.0.1:{port}" for name, port in (("inference", 1), ("management", 2), ("metrics", 3))
    }
    text = launch.render_properties(
        store=store, versions=launch.list_loadable_versions(store), netty_threads=2, **{**addresses, **changes}
    )  # fmt: skip
    return dict(line.split("=", 1) for line in text.splitlines())


def test_what_is_deployed_is_loaded_as_it_was_deployed(tmp_path):
    store = tmp_path / "store"
    made = deploy(store, tmp_path)
    settings = configured(store)
    assert settings["load_models"] == ",".join(one.path.name for one in made)
    version = json.loads(settings["models"])["flights"]["3"]
    assert (version["batchSize"], version["maxBatchDelay"], version["minWorkers"], version["maxWorkers"]) == (
        64,
        1,
        2,
        2,
    )
    assert version["marName"] == made[0].path.name


def test_an_empty_store_loads_nothing(tmp_path):
    assert "load_models" not in configured(tmp_path)


@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_a_damaged_archive_is_left_out_loudly_and_the_others_are_loaded(tmp_path, caplog, damage):
    store = tmp_path / "store"
    bad, good = deploy(store, tmp_path)
    if damage == "gone":
        bad.path.unlink()
    else:
        content = bad.path.read_bytes()
        bad.path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    assert [one["version"] for one in launch.list_loadable_versions(store)] == [good.version]
    assert "NOT LOADED: flights 3" in caplog.text


def test_an_archive_outside_the_store_is_left_out(tmp_path, caplog):
    store = tmp_path / "store"
    [made] = deploy(store, tmp_path, versions=("3",))
    made.path.rename(tmp_path / made.path.name)
    listed = json.loads((store / "deployed.json").read_text())
    listed["versions"][0]["file"] = f"../{made.path.name}"
    (store / "deployed.json").write_text(json.dumps(listed))
    assert launch.list_loadable_versions(store) == []


def test_a_model_of_other_features_does_not_keep_the_server_from_starting(tmp_path, caplog):
    deploy(tmp_path / "store", tmp_path, digest="f" * 64)
    assert launch.list_loadable_versions(tmp_path / "store") == []
    assert "trained on features ffffffffffff" in caplog.text


def test_the_server_is_closed_but_for_what_it_is_for(tmp_path):
    settings = configured(tmp_path)
    assert settings["allowed_urls"] == f"file://{tmp_path}/.*"
    assert settings["install_py_dep_per_model"] == "false"
    assert settings["enable_envvars_config"] == "false"
    assert settings["management_address"] == "http://127.0.0.1:2"
    assert settings["metrics_mode"] == "prometheus"


def test_java_is_started_itself_with_a_bounded_heap(tmp_path):
    line = launch.java_command("java", tmp_path / "c", store=tmp_path, temporary=tmp_path, heap_mb=256)
    assert line[0] == "java"
    assert {"-Xmx256m", "-ncs", "org.pytorch.serve.ModelServer"} <= set(line)
    assert Path(launch.find_java()).is_file()


def test_sockets_fit_however_deep_the_home_is(tmp_path):
    deep = tmp_path / ("d" * 90)
    assert len(str(launch._make_temporary(deep))) <= 80
    assert launch._make_temporary(Path("/tmp/w-test")) == Path("/tmp/w-test/tmp")  # noqa: S108
