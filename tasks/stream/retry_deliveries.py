"""Has answers sent again that their webhook refused, and those that wait for their next attempt, sent at once.

    python -m tasks.stream.retry_deliveries <use case>

They go under the ids that they had: a receiver that took one already drops it.
"""

import argparse
import sys

from tasks.common.command import parse_command, report_mistakes
from tasks.stream.answer_deliveries import release_deliveries


@report_mistakes
def main(arguments: list[str]) -> int:
    """The command line; 2: there is no such use case, or none with a webhook."""
    parser = argparse.ArgumentParser(prog="python -m tasks.stream.retry_deliveries", description="Send answers again.")
    parser.add_argument("use_case")
    _, use_case, outside = parse_command(parser, arguments)
    if use_case.endpoint is None or use_case.endpoint.answers is None or use_case.endpoint.answers.webhook is None:
        raise ValueError(f"{use_case.name} has no endpoint.answers.webhook in {outside.settings.params}")
    print(f"{use_case.name}: {release_deliveries(use_case, outside)} answers are sent again by the part `stream`")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
