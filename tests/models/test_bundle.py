import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from models import bundle
from models.bundle_card import KEYS, read_card
from models.ensemble import fit_ensemble
from models.interval import ConformalInterval
from models.networks import MODELS
from models.recalibration import Recalibration
from tests.models.synthetic import table
from tests.models.test_training import CPU, recipe


@pytest.fixture(scope="module", params=sorted(MODELS))
def ensemble(request):
    return fit_ensemble(recipe(network=request.param, epochs=1, seeds=(1, 2)), table(1000), CPU)


INTERVAL = ConformalInterval(coverage=0.9, rows=100, low=-1.5, high=2.5, knots=(10.0, 30.0), scales=(2.0, 7.0))


def write(folder: Path, ensemble, interval: ConformalInterval | None = None, recalibration=None) -> str:
    return bundle.write_bundle(
        folder, ensemble, use_case="flights", features_digest="f" * 8, definition="{}", recipe=recipe().to_document(),
        data={"snapshot_version": "v"}, metrics={"auc": 0.7}, versions={"torch": torch.__version__},
        interval=interval, recalibration=recalibration,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path, ensemble):
    write(tmp_path / "bundle", ensemble)
    return tmp_path / "bundle"


def test_a_bundle_comes_back_as_it_was_and_the_same_model_has_the_same_digest(folder, tmp_path, ensemble):
    loaded = bundle.load_bundle(folder, sha256=bundle.digest_bundle(folder))
    assert loaded.encoder == ensemble.encoder
    for ours, theirs in zip(ensemble.members, loaded.members, strict=True):
        assert all(torch.equal(t, theirs.state_dict()[k]) for k, t in ours.state_dict().items())
    assert write(tmp_path / "again", ensemble) == bundle.digest_bundle(folder)


@pytest.fixture(scope="module")
def regression():
    return fit_ensemble(recipe(kind="regression", epochs=1, seeds=(1,)), table(1000, kind="regression"), CPU)


def test_an_interval_comes_back_as_it_was_and_is_part_of_the_digest(tmp_path, regression):
    digests = {
        write(tmp_path / str(number), regression, interval)
        for number, interval in enumerate((None, INTERVAL, replace(INTERVAL, high=2.6)))
    }
    assert len(digests) == 3
    assert [bundle.load_bundle(tmp_path / name).interval for name in "01"] == [None, INTERVAL]
    assert set(read_card(tmp_path / "0")) == KEYS, "without one it is the card that there was before"


def test_sabotage_a_shrunken_interval_is_not_the_registered_one(tmp_path, regression):
    folder = tmp_path / "bundle"
    digest = write(folder, regression, INTERVAL)
    card = json.loads((folder / "card.json").read_text())
    card["interval"]["high"] /= 2
    (folder / "card.json").write_text(json.dumps(card, indent=1, sort_keys=True))
    assert bundle.load_bundle(folder).interval == replace(INTERVAL, high=1.25)
    with pytest.raises(ValueError, match="has the digest"):
        bundle.load_bundle(folder, sha256=digest)


def test_an_interval_that_is_none_or_of_a_probability_is_refused(tmp_path, regression, ensemble):
    write(tmp_path / "wrong", regression, replace(INTERVAL, high=-1.0))
    with pytest.raises(ValueError, match=r"bundle .*: no interval"):
        bundle.load_bundle(tmp_path / "wrong")
    write(tmp_path / "binary", ensemble, INTERVAL)
    with pytest.raises(ValueError, match="an interval around the answers of a binary model"):
        bundle.load_bundle(tmp_path / "binary")


def test_a_recalibration_comes_back_as_it_was_and_is_part_of_the_digest(tmp_path, ensemble):
    digests = {
        write(tmp_path / str(number), ensemble, recalibration=given)
        for number, given in enumerate((None, Recalibration(intercept=0.1), Recalibration(intercept=0.2)))
    }
    assert len(digests) == 3
    loaded = [bundle.load_bundle(tmp_path / name).recalibration for name in "01"]
    assert loaded == [None, Recalibration(intercept=0.1)]
    assert set(read_card(tmp_path / "0")) == KEYS, "without one it is the card that there was before"


def test_a_recalibration_that_is_none_or_of_a_number_is_refused(tmp_path, regression, ensemble):
    write(tmp_path / "wrong", ensemble, recalibration=Recalibration(intercept=0.1))
    card = json.loads((tmp_path / "wrong/card.json").read_text()) | {"recalibration": {"intercept": "0.1"}}
    (tmp_path / "wrong/card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"bundle .*: no recalibration"):
        bundle.load_bundle(tmp_path / "wrong")
    write(tmp_path / "number", regression, recalibration=Recalibration(intercept=0.1))
    with pytest.raises(ValueError, match="a recalibration of the answers of a regression model"):
        bundle.load_bundle(tmp_path / "number")


def reseal(folder: Path) -> None:
    """Make the card agree with changed parts: what a tamperer, or a half-right writer, would leave."""
    card = json.loads((folder / "card.json").read_text())
    card["files"] = {name: bundle._sha256((folder / name).read_bytes()) for name in card["files"]}
    (folder / "card.json").write_text(json.dumps(card))


def test_every_flipped_byte_is_refused(folder):
    digest = bundle.digest_bundle(folder)
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        at = len(good) // 2
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(ValueError, match="bundle"):
            bundle.load_bundle(folder, sha256=digest)
        path.write_bytes(good)
    bundle.load_bundle(folder, sha256=digest)


@pytest.mark.parametrize("name", ["weights.safetensors", "encoder.json", "features.json", "card.json"])
def test_a_missing_part_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match="must hold exactly"):
        bundle.load_bundle(folder)


def test_a_truncated_weights_file_is_refused_even_when_resealed(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="changed since it was written"):
        bundle.load_bundle(folder)
    reseal(folder)
    with pytest.raises(ValueError, match="bundle"):
        bundle.load_bundle(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {k: t for k, t in w.items() if not k.startswith("1.")},
        lambda w: {**w, "2.hidden.0.weight": w["0.hidden.0.weight"].clone()},
        lambda w: {**w, "0.hidden.0.weight": w["0.hidden.0.weight"][:, :-1].contiguous()},
        lambda w: {**w, "0.hidden.0.bias": w["0.hidden.0.bias"] * float("nan")},
        lambda w: {**w, "0.hidden.0.bias": w["0.hidden.0.bias"].double()},
    ],
    ids=["member missing", "member too many", "other shape", "not finite", "other type"],
)
def test_weights_of_another_signature_are_refused(folder, change):
    save_file(change(load_file(folder / "weights.safetensors")), folder / "weights.safetensors")
    reseal(folder)
    with pytest.raises(ValueError, match="weights missing, unexpected, of another shape or not finite"):
        bundle.load_bundle(folder)


def test_members_that_normalise_differently_are_refused(folder):
    weights = load_file(folder / "weights.safetensors")
    save_file({**weights, "1.mean": weights["1.mean"] + 1}, folder / "weights.safetensors")
    reseal(folder)
    with pytest.raises(ValueError, match="normalise the same columns differently"):
        bundle.load_bundle(folder)


def test_an_encoder_of_another_model_is_refused(folder):
    text = (folder / "encoder.json").read_text()
    (folder / "encoder.json").write_text(text.replace('"name": "hour"', '"name": "day"'))
    reseal(folder)
    with pytest.raises(ValueError, match="not the card's features"):
        bundle.load_bundle(folder)


class Malicious:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["weights.safetensors", "encoder.json", "card.json", "model.pkl"])
def test_a_planted_pickle_is_never_executed(folder, tmp_path, name):
    target = tmp_path / "executed"
    (folder / name).write_bytes(pickle.dumps(Malicious(target)))
    if name not in {"model.pkl", "card.json"}:
        reseal(folder)
    with pytest.raises(ValueError):  # noqa: PT011 (whichever check comes first)
        bundle.load_bundle(folder)
    assert not target.exists()
    pickle.loads(pickle.dumps(Malicious(target)))  # noqa: S301 (that is the point)
    assert target.exists(), "the trap itself works"
