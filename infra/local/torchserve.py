"""The online server: TorchServe, java started directly, models loaded from the model store."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from infra.local.part import Part, Step

if TYPE_CHECKING:
    from infra.local.home import Home


def environment(home: "Home") -> Mapping[str, str]:  # noqa: ARG001  # to come
    """What a process needs to use it; empty where this stack has none."""
    return {}


def parts(home: "Home", mark: Callable[[str], dict[str, str]]) -> list[Part | Step]:  # noqa: ARG001  # to come
    """The parts and steps of this home."""
    return []
