"""What every network here has in common: the preprocessing inside the graph, its losses, and how it is rebuilt.

A network is one member, with parameters of the usual shapes; or, with a population axis put before each parameter's
own (`models.population`), K members of one shape. The same code runs both: `...` below is nothing for one member and K
for a population, and rows that members share come with an axis of 1 there.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoder import Encoder

NORMALISATION = ("low", "high", "mean", "scale")  # buffers of every network, one number a column; the encoder's


class Activation:
    """SiLU, and no dropout: as every network answers. While training, `models.population` has another."""

    gain: Tensor | None = None  # what the next layer multiplies its weights by, for what dropout took away

    def __call__(self, values: Tensor) -> Tensor:
        """values [..., n, width] -> [..., n, width]."""
        return functional.silu(values)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The shape of a network. Everything here is needed to rebuild it around its weights."""

    network: str  # a key of models.networks.MODELS
    kind: Literal["binary", "regression"]
    numeric: int
    masked: tuple[int, ...]  # which numbers are read beside whether they are missing
    cardinalities: tuple[int, ...]
    hidden_units: int
    layers: int
    dropout: float


def embedding_width(cardinality: int) -> int:
    """How many numbers stand for one category: grows with the fourth root, at most 16."""
    return min(16, math.ceil(2.0 * math.sqrt(math.sqrt(cardinality))))


class Linear(nn.Linear):
    """inputs [..., n, in] -> [..., n, out]; with a population axis, a matrix of its own for each member."""

    def forward(self, inputs: Tensor, gain: Tensor | None = None) -> Tensor:
        """Batched over members where there are any, each with its gain [K, 1, 1]."""
        if self.weight.dim() == 2:
            return functional.linear(inputs, self.weight, self.bias)
        members = len(self.weight)
        weight, bias = self.weight.mT, self.bias.unsqueeze(1)
        if gain is not None:
            weight = weight * gain
        if members == 1 and self.out_features == 1:  # a lone product with a vector is summed in another order (MKL)
            return torch.baddbmm(bias.expand(2, -1, -1), inputs.expand(2, -1, -1), weight.expand(2, -1, -1))[:1]
        return torch.baddbmm(bias, inputs.expand(members, -1, -1), weight)


class Embedding(nn.Embedding):
    """codes [..., n] -> [..., n, width]; with a population axis, a table of its own for each member."""

    def forward(self, codes: Tensor) -> Tensor:
        """Looked up in the members' tables laid one after the other."""
        if self.weight.dim() == 2:
            return functional.embedding(codes, self.weight)
        members, cardinality, width = self.weight.shape
        first = cardinality * torch.arange(members, device=codes.device).unsqueeze(1)
        return functional.embedding(codes + first, self.weight.reshape(-1, width))


class Network(nn.Module, ABC):
    """numbers [n, d], codes [n, c] -> logits (binary) or values in units of the label (regression), [n]."""

    hidden: nn.ModuleList  # of `Linear`: those after the first are the same for every head

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.low = nn.Buffer(torch.zeros(config.numeric))
        self.high = nn.Buffer(torch.zeros(config.numeric))
        self.mean = nn.Buffer(torch.zeros(config.numeric))
        self.scale = nn.Buffer(torch.zeros(config.numeric))
        self.masked = nn.Buffer(torch.tensor(config.masked, dtype=torch.int64), persistent=False)
        self.label_mean = nn.Buffer(torch.zeros(()))
        self.label_scale = nn.Buffer(torch.ones(()))
        widths = [embedding_width(cardinality) for cardinality in config.cardinalities]
        self.embeddings = nn.ModuleList(Embedding(n, w) for n, w in zip(config.cardinalities, widths, strict=True))
        self.inputs = config.numeric + len(config.masked) + sum(widths)
        for embedding in self.embeddings:
            assert isinstance(embedding, Embedding)
            nn.init.normal_(embedding.weight, std=0.1)
            nn.init.zeros_(embedding.weight[0])  # an unknown value that training never met says nothing

    @property
    @abstractmethod
    def floats_per_row(self) -> int:
        """About how many numbers a training step holds for each row and member, gradients included."""

    @abstractmethod
    def outputs(self, inputs: Tensor, activation: Activation) -> Tensor:
        """What the heads say [..., heads, n] of what `preprocess` made [..., n, inputs]."""

    @abstractmethod
    def first(self) -> tuple[Tensor, Tensor]:
        """The first layer of a lone member, as one: weight [width, inputs] and bias [width]."""

    @abstractmethod
    def rest(self, hidden: Tensor, activation: Activation) -> Tensor:
        """What the heads of a lone member say [heads, n] of what follows `first`, activated [n, width]."""

    @abstractmethod
    def last(self) -> tuple[Tensor, Tensor]:
        """The heads of a lone member: weights [heads, width] and biases [heads]."""

    @abstractmethod
    def start_at(self, output: float) -> None:
        """Let every head say this of every row."""

    @torch.no_grad()
    def adopt(self, encoder: Encoder, label: Tensor) -> None:
        """Take the normalisation from the encoder and the starting point from the training labels [n]."""
        for name in NORMALISATION:
            getattr(self, name).copy_(torch.tensor([float(getattr(column, name)) for column in encoder.numeric]))
        if self.config.kind == "binary":
            self.start_at(torch.logit(label.double().mean(), eps=1e-3).item())
        else:
            self.label_mean.fill_(label.double().mean().item())
            self.label_scale.fill_(max(label.double().std(correction=0).item(), 1e-6))

    def preprocess(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """The network's input [..., n, inputs]: normalised numbers, which are missing, embedded categories."""
        return self.joined(self.normalised(numbers), codes)

    def normalised(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised numbers [..., n, d] and which are missing: the same for every network of an ensemble."""
        inside = torch.minimum(torch.maximum(numbers, self.low), self.high).sub_(self.mean).div_(self.scale)
        columns = numbers.transpose(-2, -1).index_select(-2, self.masked)  # one that is a piece stays one
        return torch.nan_to_num(inside, nan=0.0), torch.isnan(columns.transpose(-2, -1)).to(inside.dtype)

    def joined(self, normalised: tuple[Tensor, Tensor], codes: Tensor) -> Tensor:
        """The network's input [..., n, inputs] from what `normalised` made, and its own embeddings of the codes."""
        embedded = [embedding(codes[..., i]) for i, embedding in enumerate(self.embeddings)]
        parts = [*normalised, *embedded]
        if embedded:  # rows that members share are read by each beside its own embeddings
            parts = [part.expand(*embedded[0].shape[:-1], -1) for part in parts]
        return torch.cat(parts, dim=-1)

    def judged(self, inputs: Tensor) -> Tensor:
        """The network's output [..., n] for what `preprocess` made: a logit, or the label in standard deviations."""
        return self.agreed(self.outputs(inputs, Activation()))

    def agreed(self, outputs: Tensor) -> Tensor:
        """[..., heads, n] -> [..., n]: the logit of the heads' mean probability, or the mean of their values."""
        if outputs.shape[-2] == 1:
            return outputs.squeeze(-2)
        if self.config.kind == "regression":
            return outputs.mean(dim=-2)
        for_it, against = functional.logsigmoid(outputs), functional.logsigmoid(-outputs)
        return torch.logsumexp(for_it, dim=-2) - torch.logsumexp(against, dim=-2)

    def forward(self, numbers: Tensor, codes: Tensor) -> Tensor:
        """Logits or values [..., n]."""
        return self.in_label_units(self.judged(self.preprocess(numbers, codes)))

    def in_label_units(self, output: Tensor) -> Tensor:
        """The output as a logit (binary) or a value in units of the label (regression)."""
        return output if self.config.kind == "binary" else output * self.label_scale + self.label_mean

    def answer(self, output: Tensor) -> Tensor:
        """What clients get of an output: a probability (binary), or the value itself (regression)."""
        return torch.sigmoid(output) if self.config.kind == "binary" else output

    def losses(
        self, numbers: Tensor, codes: Tensor, label: Tensor, smoothing: Tensor, activation: Activation
    ) -> Tensor:
        """Mean loss of a batch [...]: cross-entropy, or smooth absolute error in standard deviations.

        Every head answers for itself. `smoothing` [..., 1] is how far a 0 or 1 is pulled to an even chance, twice over.
        """
        outputs = self.outputs(self.preprocess(numbers, codes), activation).float()
        if self.config.kind == "binary":
            wanted = (label * (1 - smoothing) + smoothing / 2).unsqueeze(-2).expand_as(outputs)
            each = functional.binary_cross_entropy_with_logits(outputs, wanted, reduction="none")
        else:
            wanted = ((label - self.label_mean) / self.label_scale).unsqueeze(-2).expand_as(outputs)
            each = functional.smooth_l1_loss(outputs, wanted, beta=0.1, reduction="none")
        return each.mean(dim=(-2, -1))
