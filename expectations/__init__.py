"""What good data is: suites as code, each expectation with its severity and its reason, looked up by use case."""

from collections.abc import Mapping

from expectations import flights
from expectations.vocabulary import Suite

_SUITES: Mapping[str, Mapping[str, Suite]] = {"flights": flights.SUITES}


def suites(name: str) -> Mapping[str, Suite]:
    """The suites of a use case, by source table."""
    if name not in _SUITES:
        raise ValueError(f"no expectations for use case {name!r}: write expectations/{name}.py and add it here")
    return _SUITES[name]
