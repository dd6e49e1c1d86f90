"""What training needs wherever it happens: its settings, rows on a device, fixed sums, scores, early stopping."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.network import Network

_EVALUATION_ROWS = 8192


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How a network is trained. The learning rate follows one cycle over `schedule_epochs`, wherever training stops."""

    learning_rate: float
    weight_decay: float
    label_smoothing: float
    batch_rows: int
    schedule_epochs: int
    seed: int

    def rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step (from 0): a rise over the first tenth, then half a cosine down to 1 %."""
        done = min(1.0, (step + 1) / (steps_per_epoch * self.schedule_epochs))
        rise = 0.1
        if done < rise:
            return self.learning_rate * done / rise
        return self.learning_rate * (0.01 + 0.99 * (1 + math.cos(math.pi * (done - rise) / (1 - rise))) / 2)


@dataclass(frozen=True)
class TrainingRows:
    """Training or validation rows on a device: numbers [n, d], codes [n, c], label [n]."""

    numbers: Tensor
    codes: Tensor
    label: Tensor

    @classmethod
    def on(
        cls, device: torch.device, numbers: NDArray[np.float32], codes: NDArray[np.int64], label: NDArray[np.float64]
    ) -> "TrainingRows":
        """Move arrays to a device, once."""
        if not np.isfinite(label).all():
            raise ValueError(f"{int((~np.isfinite(label)).sum())} labels are not finite")
        arrays = numbers, codes, label.astype(np.float32)
        return cls(*(torch.from_numpy(array).to(device).contiguous() for array in arrays))  # steps take rows, at random

    def __len__(self) -> int:
        return len(self.label)


_FILLING: Any = import_module("torch.utils.deterministic")  # its attribute is a property that type checkers do not see


@contextmanager
def deterministic(threads: int) -> Iterator[None]:
    """Same seed, same weights: sums are split over a fixed number of threads, whatever machine this is.

    Torch would also fill what it has not written yet, to show who reads it: nobody here, and it takes a fifteenth of
    the time. `torch.use_deterministic_algorithms` would do the same, and load torch's compiler for it, which takes
    seconds of every process that answers.
    """
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode(), _FILLING.fill_uninitialized_memory
    torch.set_num_threads(threads)
    _FILLING.fill_uninitialized_memory = False
    torch.set_deterministic_debug_mode("warn" if torch.cuda.is_available() else "error")
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_deterministic_debug_mode(before[1])
        _FILLING.fill_uninitialized_memory = before[2]


def best_device() -> torch.device:
    """The accelerator if there is one, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def predict_scores(
    model: Network, numbers: Tensor, codes: Tensor, *, chunk_rows: int = _EVALUATION_ROWS
) -> NDArray[np.float64]:
    """Probabilities (binary) or values (regression) of rows, float64 [n], chunk by chunk.

    Of a stacked network (`models.population`), which reads rows [1, n, ...], one line of them for each member: [K, n].
    """
    if model.training:  # telling every part again would be a third of the time that one row takes
        model.eval()
    parts = [
        model(numbers[..., i : i + chunk_rows, :], codes[..., i : i + chunk_rows, :]).double().cpu()
        for i in range(0, numbers.shape[-2], chunk_rows)
    ]
    return model.answer(torch.cat(parts, dim=-1) if parts else torch.zeros(0, dtype=torch.float64)).numpy()


@dataclass(kw_only=True)
class TrainingProgress:
    """A member's losses on validation rows, epoch by epoch; None is a loss that was not finite."""

    losses: list[float | None] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """The epoch (from 1) with the smallest loss, the earliest of equals; 0 if there is none."""
        finite = ((loss, epoch) for epoch, loss in enumerate(self.losses, start=1) if loss is not None)
        return min(finite, default=(math.inf, 0))[1]

    @property
    def best_loss(self) -> float:
        """The smallest loss so far."""
        return min((loss for loss in self.losses if loss is not None), default=math.inf)

    @property
    def diverged(self) -> bool:
        """The last loss is not a number."""
        return bool(self.losses) and self.losses[-1] is None

    def exhausted(self, patience_epochs: int) -> bool:
        """No better for that many epochs, or no longer finite."""
        return len(self.losses) - self.best_epoch >= patience_epochs or self.diverged
