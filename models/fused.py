"""An ensemble made to answer fast: rows are read once for all members, and embeddings are multiplied out beforehand.

What a first layer makes of a category's embedding is the same for every row of that category, so it is kept as a row of
a table: one look-up a category stands for all that its embedding would cost. Answers differ from those of the members,
asked one by one, by rounding alone.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.network import Activation, Embedding, Linear, Network

_NUMBERS = 4096 * 128  # of a layer, at once: with fewer the calls cost too much, with more they leave the cache


class _InPlace(Activation):
    """SiLU of values that nobody else reads."""

    def __call__(self, values: Tensor) -> Tensor:
        """values [n, width] -> [n, width]."""
        return functional.silu(values, inplace=True)


_IN_PLACE = _InPlace()


class Fused:
    """Networks of one shape and one normalisation, some of their weights multiplied: to answer, not to train."""

    @torch.no_grad()
    def __init__(self, members: Sequence[Network]) -> None:
        self._members = [_relaid(member) for member in members]
        self._starts = torch.tensor([0, *members[0].config.cardinalities]).cumsum(0)[:-1]  # in each member's table
        self._layers = [first_layer(member) for member in members]

    @torch.no_grad()
    def answers(self, numbers: Tensor, codes: Tensor) -> NDArray[np.float64]:
        """The members' mean probability (binary) or value (regression) of rows, float64 [n]."""
        rows = max(1, _NUMBERS // self._layers[0][0].shape[1])
        parts = (self._some(numbers[i : i + rows], codes[i : i + rows]) for i in range(0, len(numbers), rows))
        return np.concatenate([np.zeros(0), *parts])

    def _some(self, numbers: Tensor, codes: Tensor) -> NDArray[np.float64]:
        first = self._members[0]
        read = torch.cat([part.mT for part in first.normalised(numbers)]).mT  # [n, inputs without embeddings]
        found = codes + self._starts  # rows of a table
        outputs = []
        for member, (weight, bias, table) in zip(self._members, self._layers, strict=True):
            known = functional.embedding_bag(found, table, mode="sum") if len(table) else bias.repeat(len(found), 1)
            hidden = _IN_PLACE(known.addmm_(read, weight))
            outputs.append(member.in_label_units(member.agreed(member.rest(hidden, _IN_PLACE))))
        return first.answer(torch.stack(outputs).double()).mean(dim=0).numpy()


def _relaid(member: Network) -> Network:
    """A copy whose matrices lie in memory as a product with rows reads them."""
    copied = copy.deepcopy(member)
    for layer in copied.modules():
        if isinstance(layer, Linear):
            layer.weight.data = layer.weight.T.contiguous().T
    return copied


def first_layer(member: Network) -> tuple[Tensor, Tensor, Tensor]:
    """Weight of what is read [inputs, width], bias [width], and what each code of each category adds [codes, width].

    A row has one code of the first category, so that one's rows hold the bias too.
    """
    weight, bias = member.first()
    embeddings = [embedding.weight for embedding in member.embeddings if isinstance(embedding, Embedding)]
    widths = [embedding.shape[1] for embedding in embeddings]
    read, *of_categories = torch.split(weight, [member.inputs - sum(widths), *widths], dim=1)
    products = [
        (embedding.double() @ own.double().T).float() for embedding, own in zip(embeddings, of_categories, strict=True)
    ]
    if products:
        products[0] += bias
    return read.T.contiguous(), bias, torch.cat(products) if products else bias.new_zeros(0, len(bias))
