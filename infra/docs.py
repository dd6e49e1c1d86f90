"""Writes the pages of docs/ that are made from code: `python -m infra.docs`; with --check, says if they are current.

docs/dags.md is made from the DAGs themselves, expressions.md from the table of operations, column-types.md from
that of types, features.md from the docstrings of what a definition is written in.
"""

import argparse
import difflib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from infra.expression_page import render_expressions
from infra.feature_page import render_features
from infra.type_docs import render_type_page
from pipeline.settings import REPOSITORY
from pipeline.spec import use_cases

PAGE, EXPRESSIONS, TYPES_PAGE, FEATURES = (
    REPOSITORY / "docs" / f"{name}.md" for name in ("dags", "expressions", "column-types", "features")
)
_HEAD = """# DAGs

Generated from the DAG files by `make docs`; do not edit. There is one of each per use case, shown here for
`{use_case}`; those that start with `alerts` serve all.
"""


def describe_schedule(timetable: Any) -> str:
    """When a DAG runs, in words."""
    kind = type(timetable).__name__
    if asset := getattr(timetable, "asset_condition", None):
        return f"after `{asset.name}`" + (", once a partition" if kind.startswith("Partitioned") else "")
    if expression := getattr(timetable, "expression", None):
        return f"`{expression}` UTC" + (", by partition" if "Partition" in kind else "")
    return {"NullTimetable": "by hand, or by another DAG", "ContinuousTimetable": "always, one run after another"}[kind]


def list_parameters(dag: Any) -> list[str]:
    """One line per parameter of a DAG's form."""
    lines = []
    for name in dag.params:
        param = dag.params.get_param(name)
        optional = "null" in param.schema.get("type", [])
        given = f"default `{json.dumps(param.value)}`" if param.has_value else "optional" if optional else "required"
        lines.append(f"- `{name}` ({given}): {param.description or param.schema.get('title', name)}")
    return lines


def list_facts(dag: Any) -> list[str]:
    """What a DAG is, as a list."""
    pools = sorted({task.pool for task in dag.tasks} - {"default_pool"})
    return [
        f"- Schedule: {describe_schedule(dag.timetable)}",
        f"- Tasks: {', '.join(f'`{task.task_id}`' for task in dag.topological_sort())}",
        f"- Tags: {', '.join(sorted(dag.tags))}",
        *([f"- Pools: {', '.join(pools)}"] if pools else []),
    ]


def render_section(runbook: str, dags: Sequence[Any]) -> str:
    """The DAGs of one file: their facts, the runbook they share, their form."""
    lines = [line for dag in dags for line in (f"## {dag.dag_id}", "", *list_facts(dag), "")] + [runbook.strip()]
    if form := list_parameters(dags[0]):
        lines += ["", "**Parameters**", "", *form]
    return "\n".join(lines) + "\n"


def render_page() -> str:
    """The whole page, for the first use case of params.yaml."""
    from airflow.dag_processing.dagbag import DagBag  # noqa: PLC0415  # seconds, and not needed for --help

    first = next(iter(use_cases(REPOSITORY / "params.yaml")))
    bag = DagBag(REPOSITORY / "dags", collect_dags=False)
    bag.collect_dags(REPOSITORY / "dags")
    if bag.import_errors:
        raise ValueError("\n".join(f"{Path(file).name}: {error}" for file, error in bag.import_errors.items()))
    shown = [dag for dag_id, dag in sorted(bag.dags.items()) if dag_id.partition(".")[0] in (first, "alerts")]
    sections = [render_section(runbook, list(dags)) for runbook, dags in groupby(shown, key=lambda dag: dag.doc_md)]
    return "\n".join([_HEAD.format(use_case=first), *sections])


def main() -> int:
    """Write the pages, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 and show the difference where a page is stale")
    check = parser.parse_args().check
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AIRFLOW_HOME"] = folder  # where Airflow, once imported, makes its folders
        pages = {
            PAGE: render_page(),
            EXPRESSIONS: render_expressions(),
            TYPES_PAGE: render_type_page(),
            FEATURES: render_features(),
        }
    if not check:
        for path, generated in pages.items():
            path.write_text(generated)
        return 0
    stale = [path for path, generated in pages.items() if print_difference(path, generated)]
    return int(bool(stale))


def print_difference(path: Path, generated: str) -> bool:
    """Whether a page differs from what is generated; the difference is shown."""
    written, name = path.read_text() if path.exists() else "", path.relative_to(REPOSITORY).as_posix()
    difference = list(difflib.unified_diff(written.splitlines(), generated.splitlines(), name, "the code", "", "", 1))
    if difference:
        print("\n".join(difference), f"{name} is stale: run `python -m infra.docs`", sep="\n")
    return bool(difference)


if __name__ == "__main__":
    sys.exit(main())
