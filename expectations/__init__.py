"""What good data is: suites as code, each expectation with its severity and its reason, looked up by use case.

A use case's suites are the `SUITES` of the module that has its name.
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec

from expectations.vocabulary import Suite

_SUITES: dict[str, Mapping[str, Suite]] = {}  # those that were asked for


def suites(name: str) -> Mapping[str, Suite]:
    """The suites of a use case, by source table.

    Raises:
        ValueError: no module of that name holds them.
    """
    if name not in _SUITES:
        _SUITES[name] = _find_suites(name)
    return _SUITES[name]


def _find_suites(name: str) -> Mapping[str, Suite]:
    if not name.isidentifier() or find_spec(f"{__name__}.{name}") is None:
        raise ValueError(f"no expectations for use case {name!r}: write expectations/{name}.py, with SUITES")
    found: Mapping[str, Suite] | None = getattr(import_module(f"{__name__}.{name}"), "SUITES", None)
    if found is None:
        raise ValueError(f"no expectations for use case {name!r}: expected SUITES, a suite a table, in"
                         f" expectations/{name}.py")  # fmt: skip
    return found
