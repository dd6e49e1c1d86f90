"""What steps share that people start: which use case, how a mistake ends, and what a task's log is told."""

import argparse
import functools
import sys
from collections.abc import Callable

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
    known = use_cases(outside.settings.params)
    if options.use_case not in known:
        raise ValueError(
            f"no use case {options.use_case!r} in {outside.settings.params}; there are: {', '.join(known)}"
        )
    return options, known[options.use_case], outside


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
