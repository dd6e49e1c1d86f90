"""What the steps that people start from the command line share: which use case, and how a mistake ends."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

from pipeline.spec import UseCase, use_cases


def choose_use_case(name: str, params: Path) -> UseCase:
    """The use case of that name.

    Raises:
        ValueError: there is none; says which there are.
    """
    known = use_cases(params)
    if name not in known:
        raise ValueError(f"no use case {name!r} in {params}; there are: {', '.join(known)}")
    return known[name]


def report_mistakes(command: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """A command that ends with 2, and says why in a line, where a person asked for what there is not."""

    @functools.wraps(command)
    def reporting(arguments: list[str]) -> int:
        try:
            return command(arguments)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 2

    return reporting
