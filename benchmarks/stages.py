"""Where the time of an answer goes inside a worker: processor time of each stage, for batches of 1 and 64 events.

`python -m benchmarks.stages --folder <kept by benchmarks.serving>`. Processor time, so that other work on the machine
matters little. What java, the gateway and the shipper take is not in here.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

import features
from benchmarks.world import VERSION, World, opened
from infra.local.torchserve import online_dsn
from models.attribution import Attributions
from serving.answers import Answerer, InferenceRequest, ServingOptions
from serving.lookup import FeatureLookup
from serving.prediction_log import PredictionLog
from serving.predictor import Predictor
from serving.request import RequestReader

BATCHES = (1, 8, 64)
EVENTS = 2048  # answered for each size of a batch


class Clock:
    """Adds up the processor time of calls, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, its time kept."""

        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*arguments, **named)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.thread_time() - began

        return timed


def _answerer(world: World, clock: Clock, log: PredictionLog) -> Answerer:
    definition = features.definition(world.use_case.name)
    options = ServingOptions.from_document(
        {**world.options, "use_case": world.use_case.name, "version": VERSION, "bundle_sha256": world.sha256}
    )
    reader = RequestReader(definition.request, max_events=options.max_events)
    lookup = FeatureLookup(
        dsn=online_dsn(world.stack.home()),
        use_case=world.use_case.name,
        definition=definition,
        lead=options.lead,
        timeout_ms=10_000,
        is_mirrored=True,
    )
    predictor = Predictor.load(world.bundle)

    def unasked(_: pa.Table) -> Attributions:
        raise NotImplementedError

    for name, owner, method in (
        ("parse", reader, "read"),
        ("look up", lookup, "look_up"),
        ("predict", predictor, "predict_rows"),
        ("log", log, "write"),
    ):
        setattr(owner, method, clock.timed(name, getattr(owner, method)))
    return Answerer(options=options, reader=reader, lookup=lookup, predictor=predictor, explain=unasked, log=log.write)


def main(arguments: Sequence[str]) -> int:
    """Print a table: microseconds of processor time an event."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stages", description=__doc__)
    parser.add_argument("--folder", type=Path)
    told = parser.parse_args(arguments)
    with opened(told.folder) as world, tempfile.TemporaryDirectory() as spool:
        calls = [
            InferenceRequest(body=json.dumps(event).encode(), request_id=f"r-{n}")
            for n, event in enumerate(world.events)
        ]
        clock = Clock()
        log = PredictionLog(Path(spool), use_case=world.use_case.name, max_bytes=1 << 40)
        answerer = _answerer(world, clock, log)
        answer = clock.timed("all", answerer.answer)
        found: dict[int, dict[str, float]] = {}
        for size in BATCHES:
            batches = [calls[at : at + size] for at in range(0, len(calls) - size + 1, size)]
            answer(batches[0])
            clock.seconds.clear()
            chosen = [batches[n % len(batches)] for n in range(max(1, EVENTS // size))]
            for batch in chosen:
                answer(batch)
            found[size] = {name: seconds / (len(chosen) * size) * 1e6 for name, seconds in clock.seconds.items()}
            found[size]["the rest"] = found[size]["all"] - sum(
                found[size][name] for name in ("parse", "look up", "predict", "log")
            )
        log.close()
    names = ["parse", "look up", "predict", "log", "the rest", "all"]
    print(f"\n{'microseconds an event':24}" + "".join(f"{f'batch {size}':>12}" for size in BATCHES))
    for name in names:
        print(f"{name:24}" + "".join(f"{found[size].get(name, 0.0):12.0f}" for size in BATCHES))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
