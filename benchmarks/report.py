"""The page of all training and data benchmarks: a plot and a table of each JSON that was kept.

python -m benchmarks.report [--results benchmarks/results]      writes report.html beside them
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment
from matplotlib.figure import Figure

from infra.replay.plots import LIVE, STYLE, render_svg

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Benchmarks</title>
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em}
td,th{padding:.15em .8em;text-align:right}td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}
small{color:#666}</style><h1>Benchmarks</h1>
{% for one in benchmarks %}<h2>{{ one.title }}</h2><p><small>{{ one.about }}</small></p>{{ one.picture | safe }}
<table><tr>{% for name in one.head %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in one.rows %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endfor %}</html>
"""
_OWN = {"name", "wall_seconds", "processor_seconds"}
_TITLE = {"benchmark", "measured"}


@mpl.rc_context(STYLE)
def picture(measured: list[dict[str, Any]]) -> str:
    """Median seconds of each contestant, its fastest and slowest run, and how many times the fastest one's median."""
    medians = [median(one["wall_seconds"]) for one in measured]
    spread = [
        [m - min(one["wall_seconds"]) for m, one in zip(medians, measured, strict=True)],
        [max(one["wall_seconds"]) - m for m, one in zip(medians, measured, strict=True)],
    ]
    figure = Figure(figsize=(9, 0.5 + 0.4 * len(measured)))
    axes = figure.subplots()
    places = np.arange(len(measured))
    axes.barh(places, medians, xerr=spread, color=LIVE, ecolor="#555555", capsize=3, height=0.6)
    axes.set_yticks(places, [one["name"] for one in measured])
    axes.invert_yaxis()
    axes.set_xlabel("seconds on the wall: median, fastest and slowest run; times the fastest contestant's median")
    for place, (value, beyond) in enumerate(zip(medians, spread[1], strict=True)):
        axes.annotate(
            f"{value / min(medians):.2f}x", (value + beyond, place), xytext=(6, -3), textcoords="offset points"
        )
    return render_svg(figure)


def section(document: dict[str, Any]) -> dict[str, Any]:
    """What the page says of one benchmark."""
    measured = document["measured"]
    facts = list(dict.fromkeys(name for one in measured for name in one if name not in _OWN))
    fastest = min(median(one["wall_seconds"]) for one in measured)
    rows = []
    for one in measured:
        wall, processor = median(one["wall_seconds"]), median(one["processor_seconds"])
        row = [one["name"], f"{wall:.3g}", f"{wall / fastest:.2f}", f"{processor:.3g}", len(one["wall_seconds"])]
        rows.append(row + [one.get(name, "") for name in facts])
    return {
        "title": document["benchmark"],
        "about": "; ".join(f"{key}: {value}" for key, value in document.items() if key not in _TITLE),
        "picture": picture(measured),
        "head": ["", "wall s", "of the fastest", "processor s", "runs", *facts],
        "rows": rows,
    }


def write(results: Path) -> Path:
    """The page of every kept benchmark in a folder.

    Raises:
        ValueError: nothing was kept there.
    """
    documents = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    ours = [document for document in documents if "measured" in document]  # the serving ones have tables of their own
    if not ours:
        raise ValueError(f"no benchmark of training or data was kept in {results}: `make bench` keeps them all")
    page = results / "report.html"
    template = Environment(autoescape=True).from_string(_PAGE)
    page.write_text(template.render(benchmarks=[section(document) for document in ours]))
    return page


def main() -> None:
    """Write the page and say where it is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    print(write(parser.parse_args().results))


if __name__ == "__main__":
    main()
