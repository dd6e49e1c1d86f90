"""TabM: one perceptron that is many, by adapters that cost next to nothing.

After Gorishniy, Kotelnikov, Babenko: TabM, advancing tabular deep learning with parameter-efficient ensembling (ICLR
2025, arXiv:2410.24210), in its "mini" form: the copies share every hidden layer, each reads the inputs through a scale
of its own, and each has its own head. They are trained side by side, every one by its own loss, and their mean answers:
an ensemble's accuracy for a fraction of its parameters, and under little more than one network's risk of overfitting.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from models.network import Activation, Linear, Network, NetworkConfig

COPIES = 8


class TabM(Network):
    """Scales [copies, inputs], shared hidden layers with SiLU and dropout, and a head for each copy."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        sizes = [self.inputs, *[config.hidden_units] * config.layers]
        self.scales = nn.Parameter(torch.randint(0, 2, (COPIES, self.inputs)) * 2.0 - 1.0)
        self.hidden = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes))
        self.heads = nn.Parameter(torch.zeros(COPIES, sizes[-1]))
        self.biases = nn.Parameter(torch.zeros(COPIES))

    @property
    def floats_per_row(self) -> int:
        """As a perceptron's, for each copy."""
        return COPIES * (2 * self.inputs + 3 * (self.config.layers + 1) * self.config.hidden_units)

    @torch.no_grad()
    def start_at(self, output: float) -> None:
        """Every head's bias."""
        self.biases.fill_(output)

    def outputs(self, inputs: Tensor, activation: Activation) -> Tensor:
        """What each copy's head says [..., copies, n]."""
        seen = inputs.unsqueeze(-3) * self.scales.unsqueeze(-2)  # [..., copies, n, inputs]
        return self._after(activation(self.hidden[0](seen.flatten(-3, -2))), activation)

    def first(self) -> tuple[Tensor, Tensor]:
        """The first hidden layer behind each copy's scale, one copy after the other."""
        layer = self.hidden[0]
        assert isinstance(layer, Linear)
        return (layer.weight * self.scales.unsqueeze(1)).flatten(0, 1), layer.bias.repeat(COPIES)

    def last(self) -> tuple[Tensor, Tensor]:
        """Each copy's head."""
        return self.heads, self.biases

    def rest(self, hidden: Tensor, activation: Activation) -> Tensor:
        """The other hidden layers and the heads [copies, n]."""
        return self._after(hidden.reshape(len(hidden), COPIES, -1).transpose(0, 1).flatten(0, 1), activation)

    def _after(self, hidden: Tensor, activation: Activation) -> Tensor:
        """[..., copies * n, width] -> [..., copies, n]."""
        for layer in self.hidden[1:]:
            hidden = activation(layer(hidden, activation.gain))
        heads = self.heads if activation.gain is None else self.heads * activation.gain
        outputs = hidden.reshape(*hidden.shape[:-2], COPIES, -1, hidden.shape[-1]) @ heads.unsqueeze(-1)
        return outputs.squeeze(-1) + self.biases.unsqueeze(-1)
