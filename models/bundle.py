"""A model on disk: weights.safetensors and three JSON files. No pickle; a changed byte is refused."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from models.bundle_card import FORMAT, INTERVAL, RECALIBRATION, read_card
from models.encoder import Encoder
from models.ensemble import Ensemble
from models.interval import ConformalInterval
from models.network import NORMALISATION, Network, NetworkConfig
from models.networks import build_network
from models.recalibration import Recalibration

_PARTS = ("encoder.json", "features.json", "weights.safetensors")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A loaded model: its card (what it is and where it comes from), encoder and networks in evaluation mode."""

    card: Mapping[str, Any]
    encoder: Encoder
    members: tuple[Network, ...]
    interval: ConformalInterval | None = None  # around its answers
    recalibration: Recalibration | None = None  # of what the networks answer


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_bundle(folder: Path) -> str:
    """SHA-256 over the names and contents of a bundle's files. The same model always has the same digest."""
    parts = [
        f"{_sha256(path.read_bytes())}  {path.relative_to(folder)}\n"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return _sha256("".join(parts).encode())


def write_bundle(
    folder: Path,
    ensemble: Ensemble,
    *,
    use_case: str,
    features_digest: str,
    definition: str,
    recipe: Mapping[str, Any],
    data: Mapping[str, Any],
    metrics: Mapping[str, float],
    versions: Mapping[str, str],
    interval: ConformalInterval | None = None,
    recalibration: Recalibration | None = None,
) -> str:
    """Write a bundle into an empty folder; its digest.

    Args:
        folder: created when absent.
        ensemble: what was fitted.
        use_case: its name.
        features_digest: of the feature definition that made the training rows.
        definition: that definition, as JSON text.
        recipe: everything that decided the weights besides the rows.
        data: which rows: snapshot version, start, cut-off, number of rows.
        metrics: on validation rows, before the refit took them in; none of a winner that was refitted.
        versions: of the libraries that trained.
        interval: around a regression's answers; without one the card says nothing of it.
        recalibration: of the networks' probabilities; without one the card says nothing of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    assert not any(folder.iterdir()), f"{folder} is not empty"
    config = ensemble.members[0].config
    parts = {
        "encoder.json": ensemble.encoder.to_json().encode(),
        "features.json": definition.encode(),
        "weights.safetensors": save_tensors(
            {f"{i}.{k}": t.contiguous() for i, m in enumerate(ensemble.members) for k, t in m.state_dict().items()}
        ),
    }
    card = {
        "format": FORMAT,
        "use_case": use_case,
        "kind": config.kind,
        "features": {
            "numeric": [column.name for column in ensemble.encoder.numeric],
            "categorical": [column.name for column in ensemble.encoder.categorical],
            "digest": features_digest,
        },
        "config": asdict(config),
        "members": len(ensemble.members),
        "recipe": dict(recipe),
        "data": dict(data),
        "metrics": dict(metrics),
        "versions": dict(versions),
        "files": {name: _sha256(content) for name, content in parts.items()},
    }
    if interval is not None:
        card[INTERVAL] = interval.to_document()
    if recalibration is not None:
        card[RECALIBRATION] = recalibration.to_document()
    for name, content in {
        **parts,
        "card.json": json.dumps(card, indent=1, sort_keys=True, allow_nan=False).encode(),
    }.items():
        (folder / name).write_bytes(content)
    return digest_bundle(folder)


def load_bundle(folder: Path, *, sha256: str | None = None) -> Bundle:
    """Read and check a bundle; nothing in it is ever executed.

    Raises:
        ValueError: a file is missing, unexpected or changed, the digest is not `sha256`, or weights, encoder, card,
            interval and recalibration do not belong together.
    """
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    if present != {*_PARTS, "card.json"}:
        raise ValueError(f"bundle {folder} must hold exactly {sorted({*_PARTS, 'card.json'})}, got {sorted(present)}")
    if sha256 is not None and digest_bundle(folder) != sha256:
        raise ValueError(f"bundle {folder} has the digest {digest_bundle(folder)}, expected {sha256}")
    parts = {name: (folder / name).read_bytes() for name in _PARTS}
    card = read_card(folder)
    if changed := [name for name in _PARTS if _sha256(parts[name]) != card["files"].get(name)]:
        raise ValueError(f"bundle {folder}: changed since it was written: {', '.join(changed)}")
    encoder = Encoder.from_json(parts["encoder.json"].decode())
    return Bundle(
        card=card,
        encoder=encoder,
        members=_members(card, encoder, parts["weights.safetensors"], folder),
        interval=_interval(card, folder),
        recalibration=_recalibration(card, folder),
    )


def _interval(card: Mapping[str, Any], folder: Path) -> ConformalInterval | None:
    if INTERVAL not in card:
        return None
    if card["kind"] != "regression":
        raise ValueError(f"bundle {folder}: an interval around the answers of a {card['kind']} model")
    try:
        return ConformalInterval.from_document(card[INTERVAL])
    except ValueError as error:
        raise ValueError(f"bundle {folder}: {error}") from error


def _recalibration(card: Mapping[str, Any], folder: Path) -> Recalibration | None:
    if RECALIBRATION not in card:
        return None
    if card["kind"] != "binary":
        raise ValueError(f"bundle {folder}: a recalibration of the answers of a {card['kind']} model")
    try:
        return Recalibration.from_document(card[RECALIBRATION])
    except ValueError as error:
        raise ValueError(f"bundle {folder}: {error}") from error


def _members(card: Mapping[str, Any], encoder: Encoder, content: bytes, folder: Path) -> tuple[Network, ...]:
    """Networks of the card's shape with the file's weights; every name, shape and type must agree."""
    try:
        shape: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in card["config"].items()}
        config = NetworkConfig(**shape)
        members = tuple(build_network(config).eval() for _ in range(card["members"]))
        tensors = load_tensors(content)
    except (TypeError, KeyError, SafetensorError) as error:
        raise ValueError(f"bundle {folder}: {error!r}") from error
    names = [[c.name for c in encoder.numeric], [c.name for c in encoder.categorical]]
    if names != [card["features"]["numeric"], card["features"]["categorical"]]:
        raise ValueError(f"bundle {folder}: the encoder's columns are not the card's features")
    if config.kind != card["kind"] or (config.numeric, config.masked, config.cardinalities) != (
        len(encoder.numeric),
        encoder.masked,
        encoder.cardinalities,
    ):
        raise ValueError(f"bundle {folder}: the network's shape does not fit the encoder")
    expected = {f"{i}.{k}": t for i, m in enumerate(members) for k, t in m.state_dict().items()}
    wrong = sorted(expected.keys() ^ tensors.keys()) or [k for k, t in expected.items() if not _fits(tensors[k], t)]
    if wrong or not members:
        raise ValueError(f"bundle {folder}: weights missing, unexpected, of another shape or not finite: {wrong}")
    for i, member in enumerate(members):
        member.load_state_dict({key: tensors[f"{i}.{key}"] for key in member.state_dict()})
    if not all(torch.equal(getattr(member, n), getattr(members[0], n)) for member in members for n in NORMALISATION):
        raise ValueError(f"bundle {folder}: its members normalise the same columns differently")
    return members


def _fits(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and found.dtype == expected.dtype and bool(torch.isfinite(found).all())
