"""A multilayer perceptron on numbers and categories."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from models.network import Activation, Linear, Network, NetworkConfig


class MLP(Network):
    """Hidden layers with SiLU and dropout, and one head."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        sizes = [self.inputs, *[config.hidden_units] * config.layers]
        self.hidden = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes))
        self.head = Linear(sizes[-1], 1)
        nn.init.zeros_(self.head.weight)  # starts at the base rate: no confident nonsense to unlearn
        nn.init.zeros_(self.head.bias)

    @property
    def floats_per_row(self) -> int:
        """Inputs twice; before SiLU, mask and after it for each layer; and three more while one is at work."""
        return 2 * self.inputs + 3 * (self.config.layers + 1) * self.config.hidden_units

    @torch.no_grad()
    def start_at(self, output: float) -> None:
        """The head's bias."""
        self.head.bias.fill_(output)

    def outputs(self, inputs: Tensor, activation: Activation) -> Tensor:
        """What the one head says [..., 1, n]."""
        return self.rest(activation(self.hidden[0](inputs)), activation)

    def first(self) -> tuple[Tensor, Tensor]:
        """The first hidden layer."""
        layer = self.hidden[0]
        assert isinstance(layer, Linear)
        return layer.weight, layer.bias

    def last(self) -> tuple[Tensor, Tensor]:
        """The one head."""
        return self.head.weight, self.head.bias

    def rest(self, hidden: Tensor, activation: Activation) -> Tensor:
        """The other hidden layers and the head [..., 1, n]."""
        for layer in self.hidden[1:]:
            hidden = activation(layer(hidden, activation.gain))
        output: Tensor = self.head(hidden, activation.gain)
        return output.transpose(-2, -1)
