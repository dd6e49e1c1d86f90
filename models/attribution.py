"""What each feature did to one answer: integrated gradients from a stated baseline, one value a feature.

Integrated gradients (Sundararajan, Taly, Yan 2017, Axiomatic Attribution for Deep Networks, arXiv:1703.01365): the
gradient of the answer, averaged over the straight path from the baseline to the row, times how far the row lies from
it. The path runs through what a network reads (normalised numbers, missing masks, embedded categories), where it is
smooth; what a feature put there is summed to one value, in units of the answer, and averaged over the members, which
keeps completeness: the values sum to the answer minus the baseline's.

The baseline is a row about which nothing is known but how numbers usually are: every number at its training mean and
not missing, every category unknown. It is inside what training saw, so its answer is near the base rate, and a feature
that is at its mean, or a category that is unknown, gets exactly 0. That a number is missing counts for that number.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.bundle import Bundle
from models.network import Network, NetworkConfig, embedding_width
from models.training import deterministic, predict_scores

TOLERANCE = 1e-3  # of a probability: what the values may miss of prediction - baseline; seldom more than 1e-5
_STEPS = 64
_ROWS_AT_ONCE = 4096  # rows times steps: activations stay in the cache
_THREADS = 1  # as every door predicts: the bits do not depend on the process

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Attributions:
    """Per row, what each feature added to the baseline's answer: a probability, or a value in units of the label."""

    names: tuple[str, ...]  # d features: numbers, then categories
    values: Floats  # [n, d]
    baseline: float  # the ensemble's answer to the baseline
    prediction: Floats  # [n], as the predictor gives it
    residual: Floats  # [n], prediction - baseline - sum of values: what the quadrature missed


def attribute(bundle: Bundle, table: pa.Table, *, steps: int = _STEPS) -> Attributions:
    """The attributions of a table's rows, in one batch; meant for a few rows, at `steps` gradients a row and member.

    Raises:
        ValueError: naming the columns that are missing or of another type.
    """
    assert steps >= 1
    numbers, codes = bundle.encoder.transform(table)
    rows = torch.from_numpy(numbers), torch.from_numpy(codes)
    middle = (
        torch.tensor([[column.mean for column in bundle.encoder.numeric]], dtype=torch.float32),
        torch.zeros((1, len(bundle.encoder.categorical)), dtype=torch.int64),
    )
    with deterministic(_THREADS):
        prediction = np.mean([predict_scores(member, *rows) for member in bundle.members], axis=0)
        baseline = np.mean([predict_scores(member, *middle) for member in bundle.members], axis=0)
        slopes = np.ones((steps, len(numbers)))
        if bundle.recalibration is not None:
            along = np.mean([_answers_along(member, rows, middle, steps) for member in bundle.members], axis=0)
            slopes = bundle.recalibration.slope(along)
            prediction, baseline = (bundle.recalibration.apply(each) for each in (prediction, baseline))
        values = np.mean([_member_values(member, rows, middle, slopes) for member in bundle.members], axis=0)
    return Attributions(
        names=(*(c.name for c in bundle.encoder.numeric), *(c.name for c in bundle.encoder.categorical)),
        values=values,
        baseline=float(baseline[0]),
        prediction=prediction,
        residual=prediction - baseline - values.sum(axis=1),
    )


def _member_values(
    member: Network, rows: tuple[Tensor, Tensor], middle: tuple[Tensor, Tensor], slopes: Floats
) -> Floats:
    """One member's attributions [n, d]; `slopes` [steps, n] are those of what is made of the members' mean."""
    far, near, chunk = _ends(member, rows, middle, len(slopes))
    parts = (
        _input_values(member, far[i : i + chunk], near, slopes[:, i : i + chunk]) for i in range(0, len(far), chunk)
    )
    per_input = np.concatenate([np.zeros((0, far.shape[1])), *parts])
    return np.stack([per_input[:, list(inputs)].sum(axis=1) for inputs in _inputs_of(member.config)], axis=1)


@torch.no_grad()
def _answers_along(member: Network, rows: tuple[Tensor, Tensor], middle: tuple[Tensor, Tensor], steps: int) -> Floats:
    """One member's answers along the straight paths [steps, n], in double precision."""
    far, near, chunk = _ends(member, rows, middle, steps)
    parts = [np.zeros((steps, 0))]
    for i in range(0, len(far), chunk):
        path = _path(far[i : i + chunk], near, steps)
        parts.append(_answers(member, path).double().numpy().reshape(steps, -1))
    return np.concatenate(parts, axis=1)


def _ends(
    member: Network, rows: tuple[Tensor, Tensor], middle: tuple[Tensor, Tensor], steps: int
) -> tuple[Tensor, Tensor, int]:
    """Where the paths end and begin, in what the member reads, and how many of them are taken at once."""
    with torch.no_grad():
        return member.preprocess(*rows), member.preprocess(*middle), max(1, _ROWS_AT_ONCE // steps)


def _path(far: Tensor, near: Tensor, steps: int) -> Tensor:
    """Points [steps * n, inputs] of the straight paths, at the nodes of a Gauss-Legendre quadrature."""
    nodes, _ = np.polynomial.legendre.leggauss(steps)
    along = torch.from_numpy((nodes + 1) / 2).to(far.dtype)
    return (near + along[:, None, None] * (far - near)).reshape(-1, far.shape[1])


def _answers(member: Network, inputs: Tensor) -> Tensor:
    return member.answer(member.in_label_units(member.judged(inputs)))


def _inputs_of(config: NetworkConfig) -> Iterator[tuple[int, ...]]:
    """Which of a network's inputs speak for each feature: its number and its mask, or its embedding."""
    for i in range(config.numeric):
        yield (i, config.numeric + config.masked.index(i)) if i in config.masked else (i,)
    start = config.numeric + len(config.masked)
    for cardinality in config.cardinalities:
        width = embedding_width(cardinality)
        yield tuple(range(start, start + width))
        start += width


def _input_values(member: Network, far: Tensor, near: Tensor, slopes: Floats) -> Floats:
    """Integrated gradients [n, inputs] along the straight paths, which are smooth; `slopes` [steps, n] times each."""
    steps = len(slopes)
    _, weights = np.polynomial.legendre.leggauss(steps)
    path = _path(far, near, steps).requires_grad_()
    [gradient] = torch.autograd.grad(_answers(member, path).sum(), path)
    gradients = gradient.reshape(steps, *far.shape).double().numpy()
    mean = np.einsum("s,sn,snd->nd", weights / 2, slopes, gradients)
    return np.asarray(mean * (far - near).double().numpy(), np.float64)
