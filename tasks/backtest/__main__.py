"""Try a branch before it is merged: features, training and gate of its code over the latest partitions.

    python -m tasks.backtest <use case> <branch, tag or commit> [--periods 4]

Both the commit that is checked out here and the branch build their features from the clean data of this stack, train by
the champion's recipe as of the beginning of the latest so many partitions, and answer these; the gate judges, by this
checkout's thresholds. Files that differ from the commit are not tried. The exit code is 0 for the same, promote and
hold, 1 for what would be refused or cannot be judged, 2 where it cannot be tried.

What the stack has (rows and aliases of the use case) is counted and hashed before and after.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.handoffs import VerdictAnswer
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase
from tasks.backtest.worktree import checked_out, describe_changes, resolve_commit, run_module
from tasks.common.command import parse_command, report_mistakes

if TYPE_CHECKING:
    from adapters.connect import Outside
    from pipeline.handoffs import Snapshot
    from tasks.backtest.compare import Comparison
    from tasks.backtest.side import SideRequest

_TABLES = (
    "batches", "snapshots", "scorings", "predictions", "outcomes", "decisions", "retrains", "recalibrations",
    "champions", "ledger", "verdicts", "deployments", "performance", "served_performance", "expected_performance",
    "drift", "alerts", "costs",
)  # fmt: skip


def backtest(
    use_case: UseCase, ref: str, periods: int, outside: "Outside", *, repository: Path = REPOSITORY
) -> "Comparison":
    """Compare a branch with the commit that is checked out, over the latest so many partitions of a stack's data.

    Raises:
        ValueError: no such commit, no champion, no features, or fewer partitions; or a side's code ended badly.
    """
    commits = [resolve_commit(repository, name) for name in ("HEAD", ref)]
    with tempfile.TemporaryDirectory(prefix="windsock-backtest-") as scratch:
        request = make_request(use_case, periods, outside)
        return run_sides(use_case, commits, request, Path(scratch), repository=repository)


def make_request(use_case: UseCase, periods: int, outside: "Outside") -> "SideRequest":
    """What both sides are asked: all clean data, the champion's recipe, and from when on to answer.

    Raises:
        ValueError: as `backtest`.
    """
    from models.bundle_card import read_card
    from tasks.backtest.side import SideRequest
    from tasks.build_features import dataset
    from tasks.build_features.manifest import committed_manifest, local_files
    from tasks.common.ledger import current

    champion, snapshot = current(use_case, outside), dataset.latest_snapshot(use_case, outside)
    if champion is None or snapshot is None:
        raise ValueError(f"{use_case.name}: there is {'no champion' if snapshot else 'no dataset'} to try it beside")
    starts = _partition_starts(use_case, snapshot, outside)
    if not 0 < periods < len(starts):
        raise ValueError(f"--periods: {len(starts)} partitions are there, of which some must be left to learn from")
    card = read_card(outside.registry.download_bundle(use_case.name, champion.network_version))
    files = local_files(committed_manifest(snapshot, outside).objects, outside)
    return SideRequest(
        use_case=use_case.name,
        files={table: [str(path) for path in paths] for table, paths in files.items()},
        start=snapshot.start.isoformat(),
        as_of=starts[-periods].isoformat(),
        until=snapshot.end.isoformat(),
        recipe={name: value for name, value in card["recipe"].items() if name not in {"numeric", "categorical"}},
        output="",
    )


def run_sides(
    use_case: UseCase, commits: Iterable[str], request: "SideRequest", scratch: Path, *, repository: Path
) -> "Comparison":
    """Ask the code of both commits, today's first, one after the other; and compare."""
    from tasks.backtest.compare import compare_sides, load_side

    sides = []
    for place, commit in enumerate(commits):
        output = scratch / f"side-{place}"
        output.mkdir()
        asked = scratch / f"request-{place}.json"
        asked.write_text(json.dumps({**asdict(request), "output": str(output)}))
        print(f"{commit[:12]}: builds features, trains, answers", flush=True)
        with checked_out(repository, commit, scratch / commit[:12]) as worktree:
            run_module(worktree, "tasks.backtest.side", str(asked))
        sides.append(load_side(commit, output))
    ours, theirs = sides
    return compare_sides(use_case, theirs, ours, datetime.fromisoformat(request.as_of))


def hash_production(use_case: UseCase, outside: "Outside") -> dict[str, str]:
    """Of each table the number of the use case's rows and a hash of them, whatever their order; and the aliases."""
    found = {}
    for table in _TABLES:
        [row] = outside.warehouse.query(
            f"select count(*) as n, coalesce(sum(hashtextextended(t::text, 0)), 0)::text as hash from {table} t"  # noqa: S608
            " where use_case = %s",
            (use_case.name,),
        )
        found[table] = f"{row['n']} rows, {row['hash']}"
    return found | {"aliases": json.dumps(outside.registry.aliases(use_case.name), sort_keys=True)}


def describe_production(before: dict[str, str], after: dict[str, str]) -> str:
    """Whether anything of the use case changed meanwhile. The sides have no address, so that it was somebody else."""
    changed = [name for name in before if before[name] != after[name]]
    if not changed:
        return f"production {len(before) - 1} tables and the aliases: unchanged"
    return f"production went on meanwhile: {', '.join(changed)}"


def _partition_starts(use_case: UseCase, snapshot: "Snapshot", outside: "Outside") -> list[datetime]:
    [row] = outside.warehouse.query(
        "select index from snapshots where use_case = %s and version = %s", (use_case.name, snapshot.version)
    )
    return sorted(use_case.grid.partition(key).start for key in row["index"])


@report_mistakes
def main(arguments: list[str]) -> int:
    """The command line; 0: the same, promote or hold, 1: refused or too few rows, 2: it cannot be tried."""
    parser = argparse.ArgumentParser(prog="python -m tasks.backtest", description="Try a branch before it is merged.")
    parser.add_argument("use_case")
    parser.add_argument("ref", help="a branch, tag or commit of this checkout")
    parser.add_argument("--periods", type=int, default=4, help="the latest so many partitions are answered")
    options, use_case, outside = parse_command(parser, arguments)
    from tasks.backtest.compare import describe

    if changes := describe_changes(REPOSITORY):
        print(changes, flush=True)
    before = hash_production(use_case, outside)
    found = backtest(use_case, options.ref, options.periods, outside)
    lines = [*describe(use_case, found), describe_production(before, hash_production(use_case, outside))]
    print("\n".join(lines))
    passes = found.is_the_same or found.judgement.answer in {VerdictAnswer.PROMOTE, VerdictAnswer.HOLD}
    return 0 if passes else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
