"""`make check-use-case NAME=x`: all that can be known of a use case before its first backfill. Changes nothing.

python -m tasks.check_use_case <use case>
"""

import argparse
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg2

from adapters.connect import Outside
from adapters.errors import Unavailable
from pipeline.spec import UseCase
from tasks.check_use_case.mistakes import Mistake, in_params
from tasks.check_use_case.params_check import check_params
from tasks.check_use_case.sample import find_partitions, read_sample_rows, take_sample
from tasks.check_use_case.sample_check import check_sample, check_volumes
from tasks.check_use_case.servable import check_declared
from tasks.check_use_case.source_check import check_source
from tasks.common.command import parse_command, report_mistakes


def check_use_case(use_case: UseCase, outside: Outside) -> Iterator[Mistake]:
    """What is wrong, the cheapest first; rows are looked at once nothing else is wrong.

    Raises:
        ValueError: the source cannot be asked.
    """
    found, definition, declared = check_declared(use_case)
    found = [*check_params(use_case, datetime.now(UTC).date()), *found]
    try:
        found += check_source(use_case, declared, outside)
        yield from found
        if found or definition is None:
            return
        if (partitions := find_partitions(use_case, definition, declared, outside)) is None:
            yield in_params(
                "source.first_partition",
                f"{use_case.source.first_partition}: since then no two partitions have rows of all tables, and their"
                f" labels (time.label_delay_hours {use_case.time.label_delay_hours})",
                "a day from which there are rows, or wait for them",
            )
            return
        first, second = partitions
        raw = read_sample_rows(use_case, definition, partitions, outside)
        yield from check_volumes(use_case, declared, partitions, raw)
        sample = take_sample(use_case, definition, declared, partitions, raw)
        print(f"{first.start:%Y-%m-%d} and {second.start:%Y-%m-%d}: {sample.points.num_rows:,} points,"
              f" {sample.labels.num_rows:,} labels, in {sample.seconds:.1f} s", flush=True)  # fmt: skip
        yield from check_sample(use_case, definition, sample)
    except (psycopg2.Error, Unavailable) as error:
        raise ValueError(f"the source cannot be read: {error}") from error


@report_mistakes
def main(arguments: list[str]) -> int:
    """0: nothing is wrong; 1: something is, a line each; 2: there is no such use case, or no source."""
    parser = argparse.ArgumentParser(prog="python -m tasks.check_use_case", description=__doc__.split("\n")[0])
    parser.add_argument("use_case")
    _, use_case, outside = parse_command(parser, arguments)
    began, count = time.monotonic(), 0
    for finding in check_use_case(use_case, outside):
        print(finding.describe(use_case.name, outside.settings.params), flush=True)
        count += 1
    told = f"{count} to be changed" if count else "nothing stands against a backfill"
    print(f"{use_case.name}: {told} ({time.monotonic() - began:.0f} s)")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
