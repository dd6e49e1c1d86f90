"""One build's servers, started by that build's own Python, for `benchmarks.builds`: nothing else of ours is imported.

Says on its standard output where it is asked (`READY {...}`), and on a line `lookup` of its standard input what a
lookup takes (`LOOKUP {...}`). It ends when its input does.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path


def main(folder: Path) -> None:
    """Start, describe, and measure when told to."""
    import pyarrow.parquet as pq  # of the build whose Python this is, as all that follows

    from benchmarks import lookup, servers, world
    from serving.predictor import Predictor

    os.environ["GATEWAY_RATE"] = world.UNLIMITED
    with world.opened(folder) as opened:
        ours, _ = servers._ours(opened, servers.write_events(opened, folder / "events"))  # noqa: SLF001
        servers._await(ours)  # noqa: SLF001
        difference = servers.check(ours, Predictor.load(opened.bundle).predict(opened.points).tolist())
        pq.write_table(opened.points, folder / "points.parquet")
        about = {
            "url": ours.url,
            "bodies": str(ours.bodies),
            "processes": dict(ours.processes),
            "key": ours.key,
            "spool": str(opened.stack.folder / "torchserve" / "spool"),
            "points": str(folder / "points.parquet"),
            "difference": difference,
        }
        print(f"READY {json.dumps(about)}", flush=True)
        for line in sys.stdin:
            if line.strip() == "lookup":
                print(f"LOOKUP {json.dumps(asdict(lookup.measure(opened)))}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
