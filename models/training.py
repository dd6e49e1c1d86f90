"""Training of one network: rows live on the device and are sliced, an epoch at a time, to wherever the search asks."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.mlp import MLP

_EVALUATION_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a network is trained. The learning rate follows one cycle over `schedule_epochs`, wherever training stops."""

    learning_rate: float
    weight_decay: float
    batch_rows: int
    schedule_epochs: int
    seed: int


@dataclass(frozen=True)
class Rows:
    """Training or validation rows on a device: numbers [n, d], codes [n, c], label [n]."""

    numbers: Tensor
    codes: Tensor
    label: Tensor

    @classmethod
    def on(
        cls, device: torch.device, numbers: NDArray[np.float32], codes: NDArray[np.int64], label: NDArray[np.float64]
    ) -> "Rows":
        """Move arrays to a device, once."""
        if not np.isfinite(label).all():
            raise ValueError(f"{int((~np.isfinite(label)).sum())} labels are not finite")
        label_tensor = torch.from_numpy(label.astype(np.float32))
        return cls(*(t.to(device) for t in (torch.from_numpy(numbers), torch.from_numpy(codes), label_tensor)))

    def __len__(self) -> int:
        return len(self.label)


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Same seed, same weights: sums are split over a fixed number of threads, whatever machine this is."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())  # noqa: FBT003 (torch's signature)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def best_device() -> torch.device:
    """The accelerator if there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Fit:
    """One network in training. `train_to(n)` goes on from where it stands, so a search can judge at rungs.

    Each epoch draws from its own seed: a fit gives the same weights however its epochs are split over calls.
    """

    def __init__(self, model: MLP, rows: Rows, config: FitConfig) -> None:
        self.model = model.to(rows.label.device)
        self.rows = rows
        self.config = config
        self.epoch = 0
        self._optimiser = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._steps_per_epoch = math.ceil(len(rows) / config.batch_rows)

    def train_to(self, epochs: int) -> Iterator[float]:
        """Train until `epochs` epochs are done; yields the mean training loss of each."""
        while self.epoch < epochs:
            yield self._train_epoch()

    def _learning_rate(self, step: int) -> float:
        """One cycle: a linear rise over the first tenth of the schedule, then half a cosine down to 1 %."""
        done = min(1.0, (step + 1) / (self._steps_per_epoch * self.config.schedule_epochs))
        rise = 0.1
        if done < rise:
            return self.config.learning_rate * done / rise
        return self.config.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * (done - rise) / (1 - rise))) / 2)

    def _train_epoch(self) -> float:
        device, batch_rows = self.rows.label.device, self.config.batch_rows
        seed = self.config.seed * 100_003 + self.epoch
        order = torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(seed)).to(device)
        numbers, codes, label = (t[order] for t in (self.rows.numbers, self.rows.codes, self.rows.label))
        self.model.train()
        total = torch.zeros((), device=device)
        with torch.random.fork_rng(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            torch.manual_seed(seed)
            for i, start in enumerate(range(0, len(label), batch_rows)):
                batch = slice(start, start + batch_rows)
                for group in self._optimiser.param_groups:
                    group["lr"] = self._learning_rate(self.epoch * self._steps_per_epoch + i)
                loss = self.model.loss(numbers[batch], codes[batch], label[batch])
                self._optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                self._optimiser.step()
                total += loss.detach() * len(label[batch])
        self.epoch += 1
        return float(total) / len(label)


@torch.no_grad()
def scores(model: MLP, numbers: Tensor, codes: Tensor, *, chunk_rows: int = _EVALUATION_ROWS) -> NDArray[np.float64]:
    """Probabilities (binary) or values (regression) of rows, float64 [n], chunk by chunk."""
    if model.training:  # telling every part again would be a third of the time that one row takes
        model.eval()
    parts = [
        model(numbers[i : i + chunk_rows], codes[i : i + chunk_rows]).double().cpu()
        for i in range(0, len(numbers), chunk_rows)
    ]
    output = torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
    return (torch.sigmoid(output) if model.config.kind == "binary" else output).numpy()


class EarlyStopping:
    """Follows a fit on validation rows and remembers its best epoch; `loss_of` is smaller for better scores."""

    def __init__(
        self, fit: Fit, validation: Rows, *, loss_of: Callable[[NDArray[np.float64]], float], patience_epochs: int
    ) -> None:
        self.fit = fit
        self.best_loss = math.inf
        self.best_epoch = 0
        self.losses: list[float] = []
        self._validation = validation
        self._loss_of = loss_of
        self._patience_epochs = patience_epochs

    @property
    def exhausted(self) -> bool:
        """No better for `patience_epochs` epochs, or no longer finite."""
        return self.fit.epoch - self.best_epoch >= self._patience_epochs or self.diverged

    @property
    def diverged(self) -> bool:
        """The last loss is not a number."""
        return bool(self.losses) and not math.isfinite(self.losses[-1])

    def train_to(self, epochs: int) -> float:
        """Train to an epoch, or until exhausted; the best validation loss so far."""
        while self.fit.epoch < epochs and not self.exhausted:
            for _ in self.fit.train_to(self.fit.epoch + 1):
                score = scores(self.fit.model, self._validation.numbers, self._validation.codes)
                self.losses.append(self._loss_of(score) if np.isfinite(score).all() else math.nan)
                if self.losses[-1] < self.best_loss:
                    self.best_loss, self.best_epoch = self.losses[-1], self.fit.epoch
        return self.best_loss
