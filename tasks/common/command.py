"""What steps share that people start: which use case, how a mistake ends, and what a task's log is told."""

import argparse
import functools
import sys
from collections.abc import Callable
from pathlib import Path

from adapters import connect
from pipeline.spec import UseCase, use_cases


def parse_command(
    parser: argparse.ArgumentParser, arguments: list[str]
) -> tuple[argparse.Namespace, UseCase, connect.Outside]:
    """What was asked for, the use case that it names, and the outside world.

    Raises:
        ValueError: there is no such use case; says which there are.
    """
    options, outside = parser.parse_args(arguments), connect.outside()
    return options, find_use_case(options.use_case, outside.settings.params), outside


def find_use_case(name: str, params: Path) -> UseCase:
    """The use case of a params.yaml that has a name.

    Raises:
        ValueError: there is no such use case; says which there are.
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


def print_sentence(sentence: str) -> str:
    """Print it, and hand it on."""
    print(sentence)  # a task's log is its standard output
    return sentence
