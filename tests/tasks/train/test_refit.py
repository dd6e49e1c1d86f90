import json

import mlflow
import pytest
import torch

from adapters.errors import FencedOut
from adapters.registry import Registry
from models.ensemble import labels
from models.metrics import compute_metric
from serving.predictor import Predictor
from tasks.build_features import dataset
from tasks.common.energy import Meter
from tasks.train import search
from tasks.train.record import device_name
from tasks.train.refit import refit
from tests.models import synthetic
from tests.tasks import killed, toy


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    monkeypatch.setattr(dataset, "load_rows", dataset.load_rows)  # put back afterwards
    toy.install()


@pytest.fixture
def case(settings):
    """A use case of this test's own: MLflow is shared by the tests of a session."""
    return toy.use_case().model_copy(update={"seed": int(settings.lake_bucket[-7:], 16)})


@pytest.fixture
def study(mlflow_stack, case, outside):
    search.run_search(case, toy.SNAPSHOT, toy.AS_OF, 2, outside)
    return search.load_study_result(case, toy.SNAPSHOT, toy.AS_OF, outside)


def candidate(case, study, outside, reason="drift", decision_id="toy-20130210T0000"):
    return refit(case, toy.SNAPSHOT, study, toy.AS_OF, reason, decision_id, outside)


def test_a_candidate_is_registered_with_all_that_explains_it_and_its_bundle_answers(case, study, outside, tmp_path):
    found = candidate(case, study, outside)
    client = mlflow.MlflowClient(outside.settings.tracking_uri)
    run = client.get_run(found.run_id)
    assert run.data.tags["windsock.code_sha"] == outside.settings.code_sha
    assert run.data.tags["windsock.decision_id"] == found.decision_id == "toy-20130210T0000"
    assert run.inputs.dataset_inputs[0].dataset.digest == toy.SNAPSHOT.version
    assert {"validation_auc", "validation_log_loss", f"training_loss_seed_{case.seed}"} <= run.data.metrics.keys()
    assert set(outside.registry.profile(case.name, found.model_version)["features"]) == {
        *synthetic.NUMERIC, *synthetic.CATEGORICAL, "score",
    }  # fmt: skip
    costs = outside.warehouse.query("select model_version, step, seconds, trials from costs order by step")
    assert [(c["step"], c["trials"]) for c in costs] == [("refit", None), ("search", 2)]
    assert all(c["seconds"] > 0 and c["model_version"] == found.model_version for c in costs)

    bundle = outside.registry.download_bundle(case.name, found.model_version)
    predictor = Predictor.load(bundle, sha256=found.bundle_sha256)
    assert predictor.card["data"]["snapshot_version"] == toy.SNAPSHOT.version
    assert predictor.card["data"]["cutoff"] == found.cutoff.isoformat()
    assert predictor.card["members"] == case.train.ensemble_seeds
    assert compute_metric("auc", predictor.predict(test := synthetic.table(seed=3)), labels(test)) > 0.75

    uri = outside.settings.tracking_uri
    mlflow.artifacts.download_artifacts(run_id=found.run_id, dst_path=str(tmp_path / "run"), tracking_uri=uri)
    names = {str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert {f"plots/{n}.png" for n in ("calibration", "slices", "importances", "curves")} <= names
    assert not [n for n in names if n.endswith((".pkl", ".pt", ".pth", ".joblib", ".pt2"))]
    assert len(json.loads((tmp_path / "run" / "search" / "trials.json").read_text())) == 2
    assert "torch==" + torch.__version__.split("+")[0] in (tmp_path / "run" / "environment.txt").read_text()


def test_energy_that_can_be_read_is_kept_with_the_run_and_in_the_ledger(mlflow_stack, case, outside, monkeypatch):
    monkeypatch.setattr(Meter, "joules", lambda _: 3.0)
    search.run_search(case, toy.SNAPSHOT, toy.AS_OF, 2, outside)
    study = search.load_study_result(case, toy.SNAPSHOT, toy.AS_OF, outside)
    assert study.energy_joules is not None
    assert study.energy_joules >= 3.0
    found = candidate(case, study, outside)
    costs = outside.warehouse.query("select step, energy_joules from costs order by step")
    assert [tuple(row.values()) for row in costs] == [("refit", 3.0), ("search", study.energy_joules)]
    metrics = outside.registry.metrics(case.name, found.model_version)
    assert (metrics["refit_energy_joules"], metrics["search_energy_joules"]) == (3.0, study.energy_joules)


def test_a_retried_refit_gives_the_same_candidate_and_no_second_version(case, study, outside, monkeypatch):
    first = candidate(case, study, outside)
    with monkeypatch.context() as patched:
        patched.setattr(Registry, "log_run", None)  # nothing is trained or recorded again
        assert candidate(case, study, outside) == first
    other = candidate(case, study, outside, reason="schedule", decision_id=None)
    assert other.model_version != first.model_version
    assert other.bundle_sha256 == first.bundle_sha256, "the same model has the same bytes"


def test_killed_between_recording_and_registering_the_retry_registers_once(case, study, outside, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Registry, "register", die)
        with pytest.raises(KeyboardInterrupt):
            candidate(case, study, outside)
    retried = candidate(case, study, outside)
    key = outside.registry.version(case.name, retried.model_version).tags["windsock.key"]
    found = mlflow.MlflowClient(outside.settings.tracking_uri).search_model_versions(f"tags.`windsock.key` = '{key}'")
    assert [version.version for version in found] == [retried.model_version]


REFIT = """
from adapters.registry import Registry
from tasks.train import search
from tasks.train.refit import refit
from tests.tasks import toy
toy.install()
case = toy.use_case().model_copy(update={"seed": SEED})
search.run_search(case, toy.SNAPSHOT, toy.AS_OF, 2, outside)
study = search.load_study_result(case, toy.SNAPSHOT, toy.AS_OF, outside)
register = Registry.register
def registered_and_gone(*arguments):
    register(*arguments)
    die()
Registry.register = registered_and_gone
refit(case, toy.SNAPSHOT, study, toy.AS_OF, "drift", "toy-20130210T0000", outside)
"""


def test_killed_with_9_between_registering_and_committing_the_retry_finds_the_version_and_writes_its_costs(
    case, study, outside, monkeypatch
):
    killed.run(outside.settings, REFIT.replace("SEED", str(case.seed)), killed=True)
    assert outside.warehouse.query("select * from costs") == []
    with monkeypatch.context() as patched:
        patched.setattr(Registry, "log_run", None)  # nothing is trained or recorded again
        retried = candidate(case, study, outside)
        assert candidate(case, study, outside) == retried
    metrics = outside.registry.metrics(case.name, retried.model_version)
    costs = outside.warehouse.query("select model_version, step, seconds, trials, device from costs order by step")
    assert [(c["model_version"], c["step"], c["seconds"], c["trials"]) for c in costs] == [
        (retried.model_version, "refit", metrics["refit_seconds"], None),
        (retried.model_version, "search", study.seconds, 2),
    ]
    assert all(c["device"] == device_name() for c in costs)


def test_an_overtaken_refit_registers_nothing(case, study, outside, monkeypatch):
    log_run, keys = Registry.log_run, []

    def overtaken(self, record):
        keys.append(record.key)
        outside.warehouse.begin(f"refit/{case.name}/{record.key}")
        return log_run(self, record)

    monkeypatch.setattr(Registry, "log_run", overtaken)
    with pytest.raises(FencedOut):
        candidate(case, study, outside)
    assert outside.registry.find(case.name, keys[0]) is None
    assert outside.warehouse.query("select * from costs") == []
