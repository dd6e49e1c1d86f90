"""Train a registered model again from what its record says, and compare weights and metrics.

    python -m tasks.reproduce <use case> <model version>

restores the data version, takes parameters and seeds from the bundle, retrains, and exits 0 only if the weights agree
within the tolerance. On the machine and library versions of the first training they agree bit for bit. Code of another
commit is not compared unless `--allow-other-code` asks for it. Files that differed from the commit (`-dirty`, then or
now) are a warning: what they were is not recorded.
"""

import argparse
import sys

from tasks.common.command import parse_command, report_mistakes


@report_mistakes
def main(arguments: list[str]) -> int:
    """The command line; 0: reproduced, 1: differs, 2: cannot be tried or compared."""
    parser = argparse.ArgumentParser(prog="python -m tasks.reproduce", description="Train a registered model again.")
    parser.add_argument("use_case")
    parser.add_argument("model_version")
    parser.add_argument("--allow-other-code", action="store_true", help="compare though the code is of another commit")
    options, use_case, outside = parse_command(parser, arguments)
    from tasks.train import reproduction  # loads torch: not before there is something to train

    found = reproduction.reproduce(use_case, options.model_version, outside, allow_other_code=options.allow_other_code)
    print("\n".join(found.lines()))
    return 0 if found.ok else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
