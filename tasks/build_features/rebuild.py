"""Make a past version of a feature dataset again, and compare: the same clean objects and code give the same hash.

    python -m tasks.build_features.rebuild <use case> <version>

takes the feature code, the parameters and the manifest that were committed with the version; exits 0 only if what comes
out has the hash by which the version is known. What S3 lacks of it is stored there again.
"""

import argparse
import sys

from adapters.connect import Outside
from pipeline.handoffs import Snapshot
from tasks.build_features import dataset
from tasks.build_features.build import local_paths
from tasks.build_features.manifest import committed_manifest
from tasks.common.command import parse_command, report_mistakes


def rebuild_version(snapshot: Snapshot, outside: Outside) -> str:
    """Make a past version again, from the clean objects and the feature code committed with it; returns its hash."""
    uris = {item.uri for items in committed_manifest(snapshot, outside).objects.values() for item in items}
    return outside.versions.rebuild(
        snapshot.use_case, snapshot.git_revision, {"paths.json": local_paths(uris, outside)}
    ).version


@report_mistakes
def main(arguments: list[str]) -> int:
    """The command line; 0: the same hash, 1: another, 2: there is no such version, or its inputs are refused."""
    parser = argparse.ArgumentParser(prog="python -m tasks.build_features.rebuild", description=__doc__.split("\n")[0])
    parser.add_argument("use_case")
    parser.add_argument("version")
    options, use_case, outside = parse_command(parser, arguments)
    rebuilt = rebuild_version(dataset.find_snapshot(options.version, use_case, outside), outside)
    same = rebuilt == options.version
    print(f"{use_case.name} version {options.version}: {'rebuilt, the same hash' if same else f'DIFFERS: {rebuilt}'}")
    return 0 if same else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
