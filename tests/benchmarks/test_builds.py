"""Two builds side by side: the figures of the rounds, their ratios, and java's share apart."""

from benchmarks.builds import CONNECTIONS, Comparison, table
from benchmarks.load import Measured


def test_each_figure_is_the_median_of_its_rounds_beside_its_bar_and_java_stands_apart() -> None:
    def seen(scale: float) -> list[Measured]:
        return [
            Measured(rps=100 / scale, p50_ms=each * scale, p95_ms=1, p99_ms=1, errors=0, requests=1000)
            for each in (8, 9, 40)
        ]

    scales = {"then": 1.0, "now": 0.25}
    keys = [(name, connections) for name in scales for connections in CONNECTIONS]
    found = Comparison(
        seen={key: seen(scales[key[0]]) for key in keys},
        spent={key: [{"torchserve": 1.0, "gateway": 8.0 * scales[key[0]]}] * 3 for key in keys},
        lookups={name: [{"lookup_p99_ms": 4 * scale}] for name, scale in scales.items()},
        feast=[{"p99_ms": 5.0}],
    )
    text = table(found, "then", "now")
    assert "| p50 ms, 1 connection | 9.0 | 2.2 | 0.25 | <= 0.33 |" in text
    assert "| requests/s, 64 connections | 100.0 | 400.0 | 4.00 | >= 1.8 |" in text
    assert "| processor microseconds a request, 1 connection | 9,000.0 | 3,000.0 | 0.33 | <= 0.33 |" in text
    assert "| lookup p99 ms, feast on Redis instead of then | 5.0 | 1.0 | 0.20 | < 1 |" in text
    assert "| now | 1 | 1000 | 2000 | gateway 2000 |" in text
