"""What one lookup of features takes at 200 events a second, one a request: by itself, and as the server measures it."""

import http.client
import json
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

import numpy as np

import features
from benchmarks.world import World
from infra.local.torchserve import online_dsn
from serving.lookup import FeatureLookup
from serving.request import RequestReader

RATE = 200  # a second
SECONDS = 20
CLIENTS = 16  # that share the rate
_BUCKET = re.compile(r'^windsock_lookup_seconds_bucket\{.*le="([^"]+)".*\} ([\d.eE+]+)$', re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class LookedUp:
    """Milliseconds of a lookup by itself, and of whole answers through the gateway, at the same rate."""

    lookup_p50_ms: float
    lookup_p99_ms: float
    answer_p50_ms: float
    answer_p99_ms: float
    server_within_5_ms: float  # share of the lookups in the server, by its own histogram
    server_within_10_ms: float


def measure(world: World) -> LookedUp:
    """First the lookup in this process, then the gateway is asked."""
    lookups, _ = _at_rate([_look_up(world)])
    before = _buckets(world)
    _, answers = _at_rate([_ask(world) for _ in range(CLIENTS)])
    after = _buckets(world)
    seen = {edge: count - before.get(edge, 0) for edge, count in after.items()}
    return LookedUp(
        lookup_p50_ms=float(np.percentile(lookups, 50)),
        lookup_p99_ms=float(np.percentile(lookups, 99)),
        answer_p50_ms=float(np.percentile(answers, 50)),
        answer_p99_ms=float(np.percentile(answers, 99)),
        server_within_5_ms=seen["0.005"] / seen["+Inf"],
        server_within_10_ms=seen["0.01"] / seen["+Inf"],
    )


def _at_rate(calls: Sequence[Callable[[int], None]]) -> tuple[list[float], list[float]]:
    """Milliseconds that each call took, and those since it was due: a late one is not told to be quick.

    The callers take turns, each in a thread of its own. The first second does not count.
    """
    began = time.perf_counter()

    def run(caller: int) -> list[tuple[float, float]]:
        taken = []
        for number in range(caller, RATE * (SECONDS + 1), len(calls)):
            due = began + number / RATE
            time.sleep(max(0.0, due - time.perf_counter()))
            start = time.perf_counter()
            calls[caller](number)
            end = time.perf_counter()
            if number >= RATE:
                taken.append(((end - start) * 1000, (end - due) * 1000))
        return taken

    with ThreadPoolExecutor(len(calls)) as callers:
        pairs = [pair for found in callers.map(run, range(len(calls))) for pair in found]
    return [took for took, _ in pairs], [since for _, since in pairs]


def _look_up(world: World) -> Callable[[int], None]:
    use_case, endpoint = world.use_case, world.use_case.endpoint
    assert endpoint is not None
    definition = features.definition(use_case.name)
    lookup = FeatureLookup(
        dsn=online_dsn(world.stack.home()),
        use_case=use_case.name,
        definition=definition,
        lead=timedelta(minutes=use_case.time.lead_minutes),
        timeout_ms=endpoint.store_timeout_ms,
        is_mirrored=True,
    )
    reader = RequestReader(definition.request, max_events=endpoint.max_events)
    events = [reader.list_events(reader.read(json.dumps(event).encode()).rows) for event in world.events]

    def call(number: int) -> None:
        lookup.look_up(events[number % len(events)])

    return call


def _ask(world: World) -> Callable[[int], None]:
    settings = world.outside.settings
    connection = http.client.HTTPConnection(urlsplit(str(settings.gateway_url)).netloc, timeout=10)
    headers = {"Authorization": f"Bearer {settings.gateway_key}", "Content-Type": "application/json"}
    bodies = [json.dumps(event) for event in world.events]

    def call(number: int) -> None:
        connection.request("POST", f"/v1/{world.use_case.name}/predict", bodies[number % len(bodies)], headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise ValueError(f"the gateway answered {answer.status}")

    return call


def _buckets(world: World) -> dict[str, float]:
    """How many lookups the server counted up to each edge, in seconds."""
    address = urlsplit(world.stack.home().url("inference_metrics")).netloc
    with closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    return {edge: float(count) for edge, count in _BUCKET.findall(text)}
