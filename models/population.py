"""Many networks trained as one computation: parameters stacked, population axis first, one batched product a layer.

Members of one shape (network, width, depth) are stacked and take their steps together; another shape is another stack.
Grouping, not masking: a narrow member padded to the widest one's width would cost as much as that one (64 in 128: four
times), and would not do the arithmetic it does alone. Rates, decay, dropout, smoothing, seed, order of rows and the
epoch a member has reached are each member's own, so one that ends can be replaced by one that begins, any epoch.

A stack is cut into chunks: on a processor so that what a layer holds stays in the cache, on an accelerator so that a
step fits into its memory (`models.memory`). Chunks do not wait for each other, so threads may take one each; where the
cuts are follows from the members and the memory alone, never from the number of threads, and no bit depends on that.
"""

import copy
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from models.memory import chunk_members
from models.network import Activation, Network
from models.training import FitConfig, TrainingRows, predict_scores

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # AdamW's, as torch has them
_LEVELS = 256  # dropout is drawn in steps of 1/256: a random byte a number, an eighth of the cost of a float


class Member:
    """One network in training, alone or in a population: its weights, its optimiser's moments, and how far it is."""

    def __init__(self, model: Network, config: FitConfig) -> None:
        self.model = model
        self.config = config
        self.epoch = 0
        self.curve: list[float] = []  # mean training loss of each epoch
        size = sum(parameter.numel() for parameter in model.parameters())
        self.moments = torch.zeros(2, size, device=next(model.parameters()).device)

    @property
    def stream(self) -> tuple[int, int]:
        """Members with the same one read the same rows in the same order this epoch, and drop by the same dice."""
        return self.config.seed, self.epoch


class Population:
    """Rows on a device, and members that train on them. It keeps nothing of a member between two epochs."""

    def __init__(self, rows: TrainingRows, *, threads: int = 1) -> None:
        self.rows = rows
        self._threads = threads if rows.label.device.type == "cpu" else 1  # a chunk has all the accelerator's memory

    def train_epoch(self, members: Sequence[Member]) -> None:
        """One epoch for each of these members, whatever epoch each has reached."""
        chunks = self._chunks(members)
        if self._threads == 1 or len(chunks) == 1:
            for chunk in chunks:
                _Stack(chunk, self.rows).train_epoch()
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(lambda chunk: _Stack(chunk, self.rows).train_epoch(), chunks))

    def scores(self, members: Sequence[Member], rows: TrainingRows) -> list[NDArray[np.float64]]:
        """Each member's probabilities (binary) or values (regression) of rows [n]."""
        found = {}
        numbers, codes = rows.numbers.unsqueeze(0), rows.codes.unsqueeze(0)
        for chunk in self._chunks(members):
            stacked = stack_members([member.model for member in chunk])
            each = predict_scores(
                stacked, numbers, codes, chunk_rows=chunk[0].config.batch_rows
            )  # no more than a step takes
            found.update({id(member): of_member for member, of_member in zip(chunk, each, strict=True)})
        return [found[id(member)] for member in members]

    def _chunks(self, members: Sequence[Member]) -> list[list[Member]]:
        """Members of one shape that take their steps together; the most work first."""
        shapes: dict[object, list[Member]] = {}
        for member in members:
            member.model.to(self.rows.label.device)
        for member in sorted(members, key=lambda member: member.stream):
            shape = replace(member.model.config, dropout=0.0), member.config.batch_rows
            shapes.setdefault(shape, []).append(member)
        chunks = []
        for alike in shapes.values():
            size = chunk_members(alike[0].model, alike[0].config.batch_rows, self.rows.label.device)
            count = math.ceil(len(alike) / size)
            chunks += [alike[i * len(alike) // count : (i + 1) * len(alike) // count] for i in range(count)]
        return sorted(chunks, key=lambda chunk: -len(chunk) * chunk[0].model.floats_per_row)


def stack_members(models: Sequence[Network]) -> Network:
    """One network whose parameters are these networks' own, put behind a population axis; buffers are the first's."""
    stacked = copy.deepcopy(models[0])
    for parameter, *own in zip(stacked.parameters(), *(model.parameters() for model in models), strict=True):
        parameter.data = torch.stack([each.detach() for each in own])
    return stacked


def _schedule(config: FitConfig, step: int, steps_per_epoch: int) -> tuple[float, float, float]:
    rate, beta1, beta2 = config.rate(step, steps_per_epoch), *_BETAS
    return 1 - rate * config.weight_decay, rate / (1 - beta1 ** (step + 1)), math.sqrt(1 - beta2 ** (step + 1))


class _MaskedSiLU(torch.autograd.Function):
    """silu(values) * mask in three passes over memory where torch's own two steps take five."""

    @staticmethod
    def forward(context: Any, values: Tensor, mask: Tensor) -> Tensor:
        """Mask is 0 or 1."""
        context.save_for_backward(values, mask)
        return functional.silu(values).mul_(mask)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Of values; what it is given belongs to others."""
        values, mask = context.saved_tensors
        masked = gradient * mask
        return torch.ops.aten.silu_backward.grad_input(masked, values, grad_input=masked), None


class _Dropping(Activation):
    """SiLU and dropout, each member at its own share; the next layer's weights make up for what is missing."""

    def __init__(
        self,
        shares: Sequence[float],
        dice: Sequence[torch.Generator],
        own: Callable[[Tensor], Tensor],
        on: torch.device,
    ) -> None:
        levels = [min(round(share * _LEVELS), _LEVELS - 1) for share in shares]
        self._below = torch.tensor(levels, dtype=torch.float32, device=on).view(-1, 1, 1) - 1
        self._dice, self._own, self._device = dice, own, on
        self.gain: Tensor = _LEVELS / (_LEVELS - 1 - self._below)

    def __call__(self, values: Tensor) -> Tensor:
        """values [K, n, width] -> [K, n, width]."""
        rows, width = values.shape[1:]
        words = math.ceil(rows * width / 8)
        drawn = [
            torch.empty(words, dtype=torch.int64, device=self._device).random_(-(2**63), None, generator=dice)
            for dice in self._dice
        ]
        thrown = torch.stack(drawn).view(torch.uint8)[:, : rows * width].reshape(-1, rows, width)
        mask = (self._own(thrown.to(torch.float32)) - self._below).clamp_(0, 1)
        kept: Tensor = _MaskedSiLU.apply(values, mask.to(values.dtype))  # type: ignore[no-untyped-call]
        return kept


class _Stack:
    """A chunk of members for one epoch."""

    def __init__(self, members: list[Member], rows: TrainingRows) -> None:
        members = sorted(members, key=lambda member: member.stream)
        self.members = members
        self.rows = rows
        self.device = rows.label.device
        self.network = stack_members([member.model for member in members]).train()
        self.moments = torch.stack([member.moments for member in members], dim=1).to(self.device)  # [2, K, P]
        self.batch_rows = members[0].config.batch_rows
        self.steps = math.ceil(len(rows) / self.batch_rows)
        streams = sorted({member.stream for member in members})
        self.seeds = [seed * 100_003 + epoch for seed, epoch in streams]
        shared = len(streams) not in {1, len(members)}  # else one line of rows serves all, or each has its own already
        of_member = [streams.index(member.stream) for member in members]
        self.stream_of = torch.tensor(of_member, device=self.device) if shared else None
        self.dice = [torch.Generator(self.device).manual_seed(seed) for seed in self.seeds]
        shares = [member.model.config.dropout for member in members]
        self.activation = _Dropping(shares, self.dice, self._own, self.device) if any(shares) else Activation()

    def _tensor(self, values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def train_epoch(self) -> None:
        """All steps of an epoch; then each member has its own again."""
        orders = torch.stack(
            [torch.randperm(len(self.rows), generator=torch.Generator().manual_seed(seed)) for seed in self.seeds]
        ).to(self.device)
        smoothing = self._tensor([member.config.label_smoothing for member in self.members]).unsqueeze(1)
        parameters = list(self.network.parameters())
        schedule = self._schedule()
        total = torch.zeros(len(self.members), device=self.device)
        for i in range(self.steps):
            order = orders[:, i * self.batch_rows : (i + 1) * self.batch_rows]
            numbers, codes, label = (self._own(t[order]) for t in (self.rows.numbers, self.rows.codes, self.rows.label))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                losses = self.network.losses(numbers, codes, label, smoothing, self.activation)
            gradients = torch.autograd.grad(losses.sum(), parameters)
            self._step(parameters, gradients, schedule[:, i])
            total += losses.detach() * order.shape[1]
        self._hand_back((total / len(self.rows)).tolist())

    def _own(self, rows: Tensor) -> Tensor:
        """Rows of each stream [S, n, ...] as each member's [K, n, ...]; shared ones stay one [1, n, ...]."""
        return rows if self.stream_of is None else rows[self.stream_of]

    def _schedule(self) -> Tensor:
        """[3, steps, K, 1]: what weights shrink by, what a step is scaled by, the root of the second moment's bias."""
        rows = [
            [_schedule(m.config, m.epoch * self.steps + i, self.steps) for m in self.members] for i in range(self.steps)
        ]
        return self._tensor(rows).permute(2, 0, 1).unsqueeze(-1)

    @torch.no_grad()
    def _step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor], schedule: Tensor) -> None:
        """AdamW (Loshchilov and Hutter 2019) for every member at its own rate and decay."""
        keep, rate, root = schedule
        first, second = self.moments
        gradient = torch.cat([each.reshape(len(self.members), -1) for each in gradients], dim=1)
        first.lerp_(gradient, 1 - _BETAS[0])
        second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        change = first.div(second.sqrt().div_(root).add_(_EPSILON)).mul_(rate)
        start = 0
        for parameter in parameters:
            flat = parameter.view(len(self.members), -1)
            flat.mul_(keep).sub_(change[:, start : start + flat.shape[1]])
            start += flat.shape[1]

    @torch.no_grad()
    def _hand_back(self, losses: list[float]) -> None:
        for k, member in enumerate(self.members):
            for own, stacked in zip(member.model.parameters(), self.network.parameters(), strict=True):
                own.copy_(stacked[k])
            member.moments = self.moments[:, k].clone()
            member.epoch += 1
            member.curve.append(losses[k])
