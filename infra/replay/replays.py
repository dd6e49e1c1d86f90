"""Every replay there is, by its use case."""

from infra.replay.flights_source import FLIGHTS_REPLAYED
from infra.replay.taxi_source import TAXI_REPLAYED

REPLAYS = {one.use_case: one for one in (FLIGHTS_REPLAYED, TAXI_REPLAYED)}
DEFAULT = FLIGHTS_REPLAYED.use_case
