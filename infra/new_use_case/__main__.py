"""`make new-use-case NAME=x SOURCE=<table>`: writes what a use case needs, from a table. Overwrites nothing.

python -m infra.new_use_case NAME --table T --event-time C --available-at C --key C[,C] --target C
    --kind binary|regression --lead-minutes N --label-delay-hours N [--label-known-at C] [--answers FILE]
"""

import argparse
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg2

from adapters import connect
from adapters.errors import Unavailable
from adapters.warehouse import Warehouse
from infra.new_use_case.answers import Answers, add_questions, collect_answers
from infra.new_use_case.block import render_block
from infra.new_use_case.column_checks import find_column_mistakes
from infra.new_use_case.definition_text import count_features, render_definition
from infra.new_use_case.files import is_complete, list_paths, write_all
from infra.new_use_case.plan import make_plan
from infra.new_use_case.profile import describe_table, read_profile
from infra.new_use_case.roles import assign_roles
from infra.new_use_case.suite_text import render_suites
from pipeline.settings import REPOSITORY
from pipeline.spec import parse_use_cases
from tasks.common.command import report_mistakes


def render_use_case(answers: Answers, source: Warehouse, today: datetime) -> dict[str, str]:
    """The texts of a use case: its block, its suites and its definition.

    Raises:
        ValueError: its rows are too few, or not known in time.
    """
    profile = read_profile(source, answers)
    roles, plan = assign_roles(profile, answers), make_plan(profile, answers, today.date())
    block = render_block(
        answers,
        profile,
        plan,
        key=tuple(column.name for column in roles.key),
        known=roles.known.name,
        slices=roles.slices,
        structural=roles.structural,
        features=count_features(roles),
    )
    parse_use_cases(block, origin="what would be written to params.yaml")
    return {
        "block": block,
        "suites": render_suites(profile, plan, roles),
        "definition": render_definition(answers, profile, roles),
    }


def _find_in_name(name: str) -> Iterator[str]:
    """A name is that of modules, of a block and of DAGs."""
    if not name.isidentifier() or name != name.lower() or not name.isascii() or not name[0].isalpha():
        yield f"NAME: expected lower-case letters, digits and underscores, got {name!r}"
    for package, held in (("features", "= FeatureSet("), ("expectations", "SUITES = ")):
        path = REPOSITORY / package / f"{name}.py"
        if path.exists() and held not in path.read_text():
            yield f"NAME: {package}/{name}.py is another module: choose another name than {name!r}"


@report_mistakes
def main(arguments: list[str]) -> int:
    """0: all of it is there; 2: something is missing or does not fit, and nothing was written."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.new_use_case", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the use case: its block, and its file in every package")
    add_questions(parser)
    given = parser.parse_args(arguments)
    in_name, is_terminal = list(_find_in_name(given.name)), sys.stdin.isatty()
    if in_name and is_terminal:  # before anything is asked
        raise ValueError("\n".join(in_name))
    outside = connect.outside()
    params = outside.settings.params
    if is_complete(REPOSITORY, params, given.name):
        print(f"{given.name}: all of it is there, and nothing was changed")
        return 0
    try:
        answers = collect_answers(
            given, (lambda question: input(f"{question}\n> ")) if is_terminal else None,
            lambda table: describe_table(outside.source, table),
            lambda known: [*in_name, *find_column_mistakes(outside.source, known)],
        )  # fmt: skip
        texts = render_use_case(answers, outside.source, datetime.now(UTC))
    except (psycopg2.Error, Unavailable) as error:
        raise ValueError(f"the source cannot be read: {error}") from error
    for line in write_all(REPOSITORY, params, given.name, **texts):
        print(line)
    paths = list_paths(given.name)
    print(f"What only you know is in BLANKS of {paths['definition']}; then: make check-use-case NAME={given.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
