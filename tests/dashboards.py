"""What the dashboards and the alert rules ask, read from their files."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.settings import REPOSITORY

BOARDS = {
    path.stem: json.loads(path.read_text())
    for path in sorted((REPOSITORY / "infra" / "grafana" / "dashboards").glob("*.json"))
}
RULES = [
    rule
    for group in yaml.safe_load((REPOSITORY / "infra" / "prometheus" / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]


@dataclass(frozen=True)
class Asked:
    """One query of a panel, with the variable put in; `language` is promql or sql."""

    where: str
    language: str
    query: str


def asked(boards: dict[str, dict[str, Any]], use_case: str) -> Iterator[Asked]:
    """Every query of every panel."""
    for name, board in boards.items():
        for panel in board["panels"]:
            for target in panel["targets"]:
                language = "promql" if "expr" in target else "sql"
                query = target["expr" if language == "promql" else "rawSql"].replace("$use_case", use_case)
                yield Asked(f"{name}: {panel['title']} {target['refId']}", language, query)


def selectors(expression: str) -> set[str]:
    """The series that an expression reads, with their matchers."""
    return set(re.findall(r"\b(?:windsock|haproxy)_\w+(?:\{[^}]*\})?|\bup\b", expression))
