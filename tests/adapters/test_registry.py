import json
import secrets
import socket
from dataclasses import replace

import pytest

from adapters.errors import Corrupt, Missing, Unavailable
from adapters.registry import Registry, RunRecord, folder_sha256
from models import bundle as bundles
from tests.faulty import spoiled


@pytest.fixture
def registry(mlflow_stack, tmp_path):
    return Registry(mlflow_stack.home().url("mlflow"), tmp_path / "cache")


@pytest.fixture
def record(tmp_path):
    folder = tmp_path / "artifacts"
    (folder / "bundle").mkdir(parents=True)
    (folder / "bundle" / "card.json").write_text("{}")
    (folder / "bundle" / "weights.safetensors").write_bytes(secrets.token_bytes(1000))
    (folder / "monitoring").mkdir()
    (folder / "monitoring" / "profile.json").write_text('{"rows": 7}')
    return RunRecord(
        use_case=f"toy_{secrets.token_hex(4)}",
        key=secrets.token_hex(8),
        name="2013-04-01 first",
        dataset_version="0123456789abcdef0123456789abcdef.dir",
        params={"hidden_units": 64.0, "seeds": "(1, 2)"},
        tags={"windsock.code_sha": "c" * 40, "windsock.reason": "it's drift"},
        metrics={"validation_auc": 0.75},
        curves={"training_loss": [0.6, 0.5, 0.4]},
        artifacts=folder,
        bundle_sha256=folder_sha256(folder / "bundle"),
    )


def registered(registry, record):
    return registry.register(record.use_case, registry.log_run(record))


def test_a_run_is_recorded_with_data_version_parameters_curves_and_artifacts(registry, record):
    version = registered(registry, record)
    client = registry._client
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"hidden_units": "64.0", "seeds": "(1, 2)"}
    assert run.data.tags["windsock.reason"] == "it's drift"
    assert [(m.step, m.value) for m in client.get_metric_history(version.run_id, "training_loss")] == [
        (1, 0.6),
        (2, 0.5),
        (3, 0.4),
    ]
    assert [i.dataset.digest for i in run.inputs.dataset_inputs] == [record.dataset_version]
    assert registry.profile(record.use_case, version.version) == {"rows": 7}
    assert registry.metrics(record.use_case, version.version)["validation_auc"] == 0.75


@pytest.mark.parametrize("characters", [8000, 8001, 50_000])
def test_a_reason_of_any_length_is_kept_and_loses_no_run(registry, record, characters):
    reason = "drift, " * 10_000
    told = replace(record, tags={**record.tags, "windsock.reason": reason[:characters]}, params={"seeds": reason})
    version = registered(registry, told)
    run = registry._client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    shown = run.data.tags["windsock.reason"]
    assert shown[:7900] == reason[:7900]
    assert version.tags["windsock.reason"] == shown
    whole = json.loads(registry._fetch(version.run_id, "long_values.json", record.artifacts).read_text())
    assert whole["seeds"] == reason
    assert whole.get("windsock.reason", shown) == reason[:characters]


def test_one_piece_of_work_is_registered_once_however_often_it_is_tried(registry, record):
    first = registered(registry, record)
    assert registered(registry, record) == first
    assert registry.find(record.use_case, record.key) == first
    assert registry.find(record.use_case, "another") is None
    assert registered(registry, replace(record, key="another")).version == "2"


def test_a_half_recorded_run_is_marked_as_failed_by_the_next_try(registry, record, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(registry._client, "log_artifacts", die)
        with pytest.raises(KeyboardInterrupt):
            registry.log_run(record)
    run_id = registry.log_run(record)
    runs = registry._client.search_runs([registry._client.get_run(run_id).info.experiment_id])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED"]


def test_a_bundle_comes_back_byte_for_byte_and_then_from_the_cache(registry, record):
    version = registered(registry, record)
    folder = registry.download_bundle(record.use_case, version.version)
    assert folder_sha256(folder) == record.bundle_sha256 == version.bundle_sha256
    assert registry.cache in folder.parents
    before = folder.stat().st_mtime_ns
    assert registry.download_bundle(record.use_case, version.version).stat().st_mtime_ns == before


def test_a_damaged_cache_entry_is_fetched_anew(registry, record):
    version = registered(registry, record)
    folder = registry.download_bundle(record.use_case, version.version)
    (folder / "card.json").write_text("[]")
    assert folder_sha256(registry.download_bundle(record.use_case, version.version)) == record.bundle_sha256


def test_a_bundle_changed_in_the_store_is_refused(registry, record, tmp_path):
    version = registered(registry, record)
    (tmp_path / "card.json").write_text('{"tampered": true}')
    registry._client.log_artifact(version.run_id, str(tmp_path / "card.json"), "bundle")
    with pytest.raises(Corrupt, match="registered was"):
        registry.download_bundle(record.use_case, version.version)
    assert not list((registry.cache / "bundles").iterdir()), "nothing is left behind"


def test_aliases_are_set_read_back_and_removed(registry, record):
    assert registry.aliases(record.use_case) == {}
    registered(registry, record)
    registered(registry, replace(record, key="another"))
    registry.set_aliases(record.use_case, "1", None)
    assert registry.aliases(record.use_case) == {"champion": "1"}
    registry.set_aliases(record.use_case, "2", "1")
    assert registry.aliases(record.use_case) == {"champion": "2", "previous_champion": "1"}
    registry.set_aliases(record.use_case, "1", None)
    assert registry.aliases(record.use_case) == {"champion": "1"}


def test_a_version_that_is_not_there_is_named_and_not_asked_for_again(registry, record):
    registered(registry, record)
    with pytest.raises(Missing, match="no model version '9'"):
        registry.version(record.use_case, "9")
    with pytest.raises(Missing, match="no model version"):
        registry.download_bundle(f"not_{record.use_case}", "1")


def test_a_bundle_that_was_never_stored_is_not_asked_for_again_and_of_a_store_that_is_down_it_is(
    registry, record, tmp_path
):
    """The client answers both in the same words."""
    version = registered(registry, record)
    empty = registry._client.create_run(registry._client.get_run(version.run_id).info.experiment_id).info.run_id
    tags = {"windsock.bundle_sha256": "0" * 64}
    registry._client.create_model_version(record.use_case, f"runs:/{empty}/bundle", empty, tags)
    with pytest.raises(Missing, match="has stored nothing under 'bundle'"):
        registry.download_bundle(record.use_case, "2")
    with pytest.raises(Missing, match=r"has stored nothing under 'monitoring/profile\.json'"):
        registry.profile(record.use_case, "2")
    assert not list((registry.cache / "bundles").iterdir()), "nothing is left behind"

    def refuse_artefacts(handler, _status, _body):
        if is_refused := "mlflow-artifacts/artifacts" in handler.path:
            handler.send_error(503)
        return is_refused

    host = registry.tracking_uri.removeprefix("http://")
    with spoiled(registry.tracking_uri, refuse_artefacts, as_host=host) as uri, pytest.raises(Unavailable):
        Registry(uri, tmp_path / "other").download_bundle(record.use_case, "1")
    assert registry.download_bundle(record.use_case, "1").is_dir()


def test_a_registry_that_is_down_is_said_and_may_be_retried(tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        registry = Registry(f"http://127.0.0.1:{nobody.getsockname()[1]}", tmp_path)
        with pytest.raises(Unavailable, match="did not answer"):
            registry.aliases("toy")


def test_registry_and_bundle_digest_a_folder_alike(record):
    assert folder_sha256(record.artifacts / "bundle") == bundles.digest_bundle(record.artifacts / "bundle")
