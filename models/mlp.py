"""A multilayer perceptron on numbers and categories; preprocessing is part of the graph, so it cannot be forgotten."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoder import Encoder


@dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """The shape of a network. Everything here is needed to rebuild it around its weights."""

    kind: Literal["binary", "regression"]
    numeric: int
    cardinalities: tuple[int, ...]
    hidden_units: int
    layers: int
    dropout: float


def embedding_width(cardinality: int) -> int:
    """How many numbers stand for one category: grows with the fourth root, at most 16."""
    return min(16, math.ceil(2.0 * math.sqrt(math.sqrt(cardinality))))


class MLP(nn.Module):
    """numbers [n, d], codes [n, c] -> logits (binary) or values in units of the label (regression), [n]."""

    low: Tensor
    high: Tensor
    mean: Tensor
    scale: Tensor
    mask: Tensor
    label_mean: Tensor
    label_scale: Tensor

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        for name in ("low", "high", "mean", "scale", "mask"):
            self.register_buffer(name, torch.zeros(config.numeric))
        self.register_buffer("label_mean", torch.zeros(()))
        self.register_buffer("label_scale", torch.ones(()))
        widths = [embedding_width(cardinality) for cardinality in config.cardinalities]
        self.embeddings = nn.ModuleList(nn.Embedding(n, w) for n, w in zip(config.cardinalities, widths, strict=True))
        sizes = [2 * config.numeric + sum(widths), *[config.hidden_units] * config.layers]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(sizes[-1], 1)
        self._initialise()

    def _initialise(self) -> None:
        for embedding in self.embeddings:
            assert isinstance(embedding, nn.Embedding)
            nn.init.normal_(embedding.weight, std=0.1)
            nn.init.zeros_(embedding.weight[0])  # an unknown value that training never met says nothing
        nn.init.zeros_(self.head.weight)  # starts at the base rate: no confident nonsense to unlearn
        nn.init.zeros_(self.head.bias)

    @torch.no_grad()
    def adopt(self, encoder: Encoder, label: Tensor) -> None:
        """Take the normalisation from the encoder and the starting point from the training labels [n]."""
        for name in ("low", "high", "mean", "scale", "mask"):
            values = [float(getattr(column, name)) for column in encoder.numeric]
            getattr(self, name).copy_(torch.tensor(values, dtype=torch.float32))
        if self.config.kind == "binary":
            self.head.bias.fill_(torch.logit(label.double().mean(), eps=1e-3).item())
        else:
            self.label_mean.fill_(label.double().mean().item())
            self.label_scale.fill_(max(label.double().std(correction=0).item(), 1e-6))

    def preprocess(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """The network's input [n, 2 d + embeddings]: normalised numbers, missing masks, embedded categories."""
        missing = torch.isnan(numbers)
        normalised = (torch.clamp(numbers, self.low, self.high) - self.mean) / self.scale
        filled = torch.where(missing, torch.zeros_like(normalised), normalised)
        embedded = [embedding(codes[:, i]) for i, embedding in enumerate(self.embeddings)]
        return torch.cat([filled, missing * self.mask, *embedded], dim=1)

    def standardised(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """The head's output [n]: a logit, or the label in standard deviations from its training mean."""
        return self.judged(self.preprocess(numbers, codes))

    def judged(self, inputs: Tensor) -> Tensor:
        """The head's output [n] for what `preprocess` made."""
        hidden = inputs
        for layer in self.hidden:
            hidden = self.dropout(functional.silu(layer(hidden)))
        output: Tensor = self.head(hidden).squeeze(1)
        return output

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Logits or values [n]."""
        return self.in_label_units(self.standardised(numbers, codes))

    def in_label_units(self, output: Tensor) -> Tensor:
        """The head's output as a logit (binary) or a value in units of the label (regression)."""
        return output if self.config.kind == "binary" else output * self.label_scale + self.label_mean

    def loss(self, numbers: Tensor, codes: Tensor, label: Tensor) -> Tensor:
        """Mean loss of a batch: cross-entropy, or smooth absolute error in standard deviations."""
        output = self.standardised(numbers, codes).float()
        if self.config.kind == "binary":
            return functional.binary_cross_entropy_with_logits(output, label)
        return functional.smooth_l1_loss(output, (label - self.label_mean) / self.label_scale, beta=0.1)
