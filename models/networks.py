"""The networks there are, by name; a new one is a line here and a file beside this one."""

from collections.abc import Mapping

from models.mlp import MLP
from models.network import Network, NetworkConfig
from models.tabm import TabM

MODELS: Mapping[str, type[Network]] = {"mlp": MLP, "tabm": TabM}


def build_network(config: NetworkConfig) -> Network:
    """A network of a shape, initialised from torch's own generator.

    Raises:
        KeyError: there is no such network.
    """
    return MODELS[config.network](config)
