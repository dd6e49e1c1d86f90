"""A recipe and a table in, fitted networks out: the one place where search, refit and reproduction train."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from models.encoder import Encoder
from models.network import Network, NetworkConfig
from models.networks import build_network
from models.population import Member, Population
from models.training import FitConfig, TrainingRows, deterministic


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides an ensemble's weights, besides the rows."""

    kind: Literal["binary", "regression"]
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    network: str
    hidden_units: int
    layers: int
    dropout: float
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    batch_rows: int
    schedule_epochs: int
    epochs: int
    seeds: tuple[int, ...]
    threads: int

    def to_document(self) -> dict[str, Any]:
        """As JSON values."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Recipe":
        """From `to_document`'s JSON values; an unknown or missing key is an error."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
        return cls(**values)


class TrainingDiverged(ValueError):  # noqa: N818  # reads as what it is
    """Training came to no network that answers with numbers."""


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """Fitted networks that share an encoder, and each one's training loss per epoch."""

    encoder: Encoder
    members: tuple[Network, ...]
    curves: tuple[tuple[float, ...], ...]


def labels(table: pa.Table) -> NDArray[np.float64]:
    """The label column as float64 [n]."""
    return np.array(table.column("label").to_numpy(), np.float64)


def rows_of(encoder: Encoder, table: pa.Table, device: torch.device) -> TrainingRows:
    """A labelled table's rows, encoded, on a device."""
    return TrainingRows.on(device, *encoder.transform(table), labels(table))


def start_member(recipe: Recipe, encoder: Encoder, rows: TrainingRows, *, seed: int) -> Member:
    """A member that has not taken a step: network initialised from the seed, normalisation adopted."""
    config = NetworkConfig(
        network=recipe.network,
        kind=recipe.kind,
        numeric=len(encoder.numeric),
        masked=encoder.masked,
        cardinalities=encoder.cardinalities,
        hidden_units=recipe.hidden_units,
        layers=recipe.layers,
        dropout=recipe.dropout,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build_network(config)
    model.adopt(encoder, rows.label.cpu())
    return Member(
        model,
        FitConfig(
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            label_smoothing=recipe.label_smoothing,
            batch_rows=recipe.batch_rows,
            schedule_epochs=recipe.schedule_epochs,
            seed=seed,
        ),
    )


def fit_ensemble(recipe: Recipe, table: pa.Table, device: torch.device) -> Ensemble:
    """Train one network per seed, all at once, on a labelled table. Bit for bit repeatable on a CPU.

    Raises:
        TrainingDiverged: a loss is not finite.
        ValueError: no rows, or a column missing or of another type.
    """
    encoder = Encoder.fit(table, numeric=recipe.numeric, categorical=recipe.categorical)
    with deterministic(recipe.threads):
        rows = rows_of(encoder, table, device)
        members = [start_member(recipe, encoder, rows, seed=seed) for seed in recipe.seeds]
        population = Population(rows)
        for _ in range(recipe.epochs):
            population.train_epoch(members)
    curves = tuple(tuple(member.curve) for member in members)
    if not np.isfinite(curves).all():
        raise TrainingDiverged(f"training diverged: {recipe}")
    return Ensemble(encoder=encoder, members=tuple(member.model.cpu().eval() for member in members), curves=curves)
