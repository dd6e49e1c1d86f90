"""An ensemble that answers a few rows at once: the same sums as `models.fused`, in numpy.

Of one row torch's own calls take twenty times as long as its sums. Answers differ by rounding alone; tests hold them
to 1e-6 of those of the members.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from models.fused import first_layer
from models.network import NORMALISATION, Linear, Network

Floats = NDArray[np.float32]


class SmallBatch:
    """Networks of one shape and one normalisation; the first axis of each weight is the members'."""

    def __init__(self, members: Sequence[Network]) -> None:
        self._config = members[0].config
        self._low, self._high, self._mean, self._scale = (_array(getattr(members[0], name)) for name in NORMALISATION)
        self._masked = list(self._config.masked)
        self._starts = np.cumsum([0, *self._config.cardinalities])[:-1]
        read, biases, tables = zip(*(first_layer(member) for member in members), strict=True)
        self._read, self._bias, self._table = _stack(read), _stack(biases)[:, None], _stack(tables)
        layers = zip(*(member.hidden[1:] for member in members), strict=True)
        self._layers = [_stack_layers(of_members) for of_members in layers]
        heads, offsets = zip(*(member.last() for member in members), strict=True)
        self._heads, self._offsets = _stack(heads)[:, None], _stack(offsets)[:, None]
        self._label_mean, self._label_scale = (
            np.array([float(getattr(member, name)) for member in members])[:, None]
            for name in ("label_mean", "label_scale")
        )

    def answers(self, numbers: Floats, codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """The members' mean probability (binary) or value (regression) of rows, float64 [n].

        What is not finite in `numbers` [n, d] is missing; `codes` are [n, c].
        """
        with np.errstate(all="ignore"):  # an exponential too large for 32 bits is infinite, and its inverse zero
            inside = (np.minimum(np.maximum(numbers, self._low), self._high) - self._mean) / self._scale
            missing = ~np.isfinite(numbers)
            inside[missing] = 0.0
            read = np.concatenate([inside, missing[:, self._masked]], axis=1)
            known = self._table[:, codes + self._starts].sum(axis=2) if len(self._starts) else self._bias
            hidden = _activate(read @ self._read + known)  # [members, n, width], of one copy after the other
            heads = self._heads.shape[2]
            hidden = hidden.reshape(len(hidden), len(numbers) * heads, -1)
            for weight, bias in self._layers:
                hidden = _activate(hidden @ weight + bias)
            outputs = hidden.reshape(len(hidden), len(numbers), heads, -1) * self._heads
            found = outputs.sum(axis=-1).astype(np.float64) + self._offsets  # [members, n, heads]
            if self._config.kind == "binary":
                return np.asarray((1 / (1 + np.exp(-found))).mean(axis=(0, 2)))
            return np.asarray((found.mean(axis=2) * self._label_scale + self._label_mean).mean(axis=0))


def _activate(values: Floats) -> Floats:
    """SiLU."""
    return np.asarray(values / (1 + np.exp(-values)))


def _array(tensor: Tensor) -> Floats:
    return np.asarray(tensor.detach().numpy())


def _stack(tensors: Sequence[Tensor]) -> Floats:
    return np.stack([_array(tensor) for tensor in tensors])


def _stack_layers(layers: Sequence[Linear]) -> tuple[Floats, Floats]:
    return _stack([layer.weight.T for layer in layers]), _stack([layer.bias for layer in layers])[:, None]
