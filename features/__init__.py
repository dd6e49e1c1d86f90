"""What a model sees: one definition a use case, used by training, batch scoring and monitoring."""

from features.engine import FeatureSet
from features.flights import FLIGHTS
from features.offline import build

_DEFINITIONS = {FLIGHTS.name: FLIGHTS}


def definition(name: str) -> FeatureSet:
    """The feature definition of a use case.

    Raises:
        ValueError: no use case of that name has one.
    """
    if name not in _DEFINITIONS:
        raise ValueError(f"no features for {name!r}: write features/{name}.py and add it to features/__init__.py")
    return _DEFINITIONS[name]


__all__ = ["FeatureSet", "build", "definition"]
