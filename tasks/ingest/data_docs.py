"""Data Docs: Great Expectations' own page for a validation result, made to stand alone: no network, small."""

import html
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

_NETWORK = re.compile(r"<script\b[^>]*\bsrc=[^>]*>\s*</script>|<link\b[^>]*>|<img\b[^>]*>", re.IGNORECASE)
_SCRIPTS = re.compile(r"<script\b.*?</script>", re.IGNORECASE | re.DOTALL)
_STYLE = """<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 }
td, th { border: 1px solid #ddd; padding: .3rem .5rem }
td, th { text-align: left; vertical-align: top } .table-danger, .text-danger { color: #b00020 }
.text-success { color: #1b7f3b } .badge { background: #eee; border-radius: .5rem; padding: 0 .4rem }
.collapse, nav, #ge-cta-footer { display: none } ul { padding-left: 1.2rem } pre { white-space: pre-wrap }
</style>"""


@cache
def _view() -> Any:
    """One a process: it compiles its templates."""
    from great_expectations.render.view import DefaultJinjaPageView

    return DefaultJinjaPageView()


def render_table_page(title: str, results: Any) -> str:
    """One table's validation result as HTML."""
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer

    rendered = _view().render(ValidationResultsPageRenderer().render(results))
    alone = _SCRIPTS.sub("", _NETWORK.sub("", rendered))
    return alone.replace("</head>", f"{_STYLE}<title>{html.escape(title)}</title></head>", 1)


def render_index_page(title: str, findings: Mapping[str, Sequence[str]]) -> str:
    """The page of a run: the findings in each table, with a link to the table's own page beside this one."""
    sections = "".join(
        f'<h2><a href="{html.escape(table)}.html">{html.escape(table)}</a></h2><ul>'
        + "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        + "</ul>"
        for table, lines in findings.items()
    )
    name = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{_STYLE}<title>{name}</title></head>'
        f"<body><h1>{name}</h1>{sections}</body></html>"
    )
