"""Holds a page to the programs: each block is run, parsed or nothing to type, and so is each command in the text."""

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg2
import yaml

from pipeline.settings import REPOSITORY
from pipeline.spec import parse_use_cases, use_cases
from tests.pages import Block, is_run_by, list_blocks, list_spans
from tests.pipeline.test_spec import EXPERIMENT
from tests.typed_commands import CHECKS, check_command, check_setting, fill_placeholders, split_commands

PARAMS = REPOSITORY / "params.yaml"
RUN_BY = {  # what another test knows more about; it takes all blocks of the language
    ("docs/online.md", "sh"): "tests/e2e/test_loop.py",
    ("docs/online.md", "yaml"): "tests/test_documents.py",
    ("docs/online.md", "json"): "tests/test_documents.py",
    ("docs/monitoring.md", "yaml"): "tests/infra/test_rules.py",
    ("docs/bring-your-own-table.md", "yaml"): "tests/infra/new_use_case_world.py",
    ("docs/own-dag.md", "python"): "tests/dags/test_own_dag.py",
    ("docs/windows.md", "python"): "tests/features/test_window_page.py",
}
_STATEMENT = re.compile(r"(select|insert into|update|delete from|with) ", re.IGNORECASE)
_ASSIGNED = re.compile(r"([A-Z][A-Z0-9_]*)=(\S*)")
_DECLARED = re.compile(r"([a-z_]+): ([a-z0-9_.]+)")
_ASSETS = {"clean", "features", "scores"}
TYPED = set(CHECKS) - {"airflow", "mlflow", "sh", "find"}  # these begin what a block has, or are talked about
_DOTTED = re.compile(r"([a-z_]+)\.([a-z0-9_.]+)")


@dataclass(frozen=True, kw_only=True)
class Databases:
    """A migrated warehouse and the shipped use case's source, to try statements on."""

    warehouse_dsn: str
    source_dsn: str

    def try_statement(self, statement: str) -> list[str]:
        """Run it as its owner, and take it back. Returns what PostgreSQL has against it."""
        statement = fill_placeholders(statement)
        tables = re.findall(r"(?:from|join|into|update) (\w+)", statement, re.IGNORECASE)
        sourced = set(tables) & set(use_cases(PARAMS)["flights"].source.tables)
        with closing(psycopg2.connect(self.source_dsn if sourced else self.warehouse_dsn)) as opened:
            try:
                with opened.cursor() as at:
                    at.execute(statement)
            except psycopg2.Error as error:
                return [f"{statement}: {str(error).splitlines()[0]}"]
        return []

    def columns(self, table: str) -> set[str]:
        """Of a table of the warehouse; empty where there is none."""
        with closing(psycopg2.connect(self.warehouse_dsn)) as opened, opened.cursor() as at:
            at.execute("select column_name from information_schema.columns where table_name = %s", (table,))
            return {name for (name,) in at.fetchall()}


def list_mistakes(page: str, text: str, databases: Databases) -> list[str]:
    """All that a page says to type and that would not be taken, a sentence each."""
    found = [problem for block in list_blocks(text) for problem in _check_block(page, block, databases)]
    return found + [problem for span in list_spans(text) for problem in _check_span(span, databases)]


def _check_block(page: str, block: Block, databases: Databases) -> list[str]:
    if runner := RUN_BY.get((page, block.language)):
        return [] if is_run_by(runner, page, block.language) else [f"{runner} does not run the blocks of {page}"]
    match block.language:
        case "mermaid":
            return []  # a picture
        case "yaml":
            return _check_params(yaml.safe_load(block.text))
        case "sql" | "" if _STATEMENT.match(block.text):
            statements = filter(None, map(str.strip, block.text.split(";")))
            return [problem for statement in statements for problem in databases.try_statement(statement)]
        case "" | "sh":
            return [] if _is_tree(block.text) else list(_check_lines(block.text))
    return [f"a block of {block.language!r}: no test runs it"]


def _is_tree(text: str) -> bool:
    """Whether every line is a path that exists, and what it is."""
    return all(re.match(r"\S+ {2,}\w", line) and (REPOSITORY / line.split()[0]).exists() for line in text.splitlines())


def _check_lines(text: str) -> Iterator[str]:
    for words in split_commands(text):
        settings = [_ASSIGNED.fullmatch(word) for word in words]
        if all(settings):
            for setting in filter(None, settings):
                yield from check_setting(*setting.groups())
        else:
            yield from check_command(words)


def _check_span(span: str, databases: Databases) -> list[str]:
    if _STATEMENT.match(span):
        return databases.try_statement(span)
    if (dotted := _DOTTED.fullmatch(span)) and not (REPOSITORY / span).exists():
        return _check_dotted(*dotted.groups(), databases)
    if dag := re.fullmatch(r"<use case>\.([a-z_]+)", span):
        return [] if dag[1] in _ASSETS else _check_dag(dag[1])
    if declared := _DECLARED.fullmatch(span):
        return _check_params({declared[1]: yaml.safe_load(declared[2])})
    if _is_command(span):
        return [problem for words in split_commands(span) for problem in check_command(words)]
    return []


def _is_command(span: str) -> bool:
    """Whether it begins as one, after variables that are set for it; the name of a program alone is a mention of it."""
    words = [word for word in span.split(" ") if not _ASSIGNED.fullmatch(word)]
    return not words or (len(words) > 1 and (words[0] in TYPED or words[0].startswith(".venv/bin/")))


def _check_dotted(first: str, rest: str, databases: Databases) -> list[str]:
    """A DAG, a column of the warehouse, or a setting; what begins as none of them is something else."""
    if first == "flights":
        return _check_dag(rest) if rest not in _ASSETS else []
    if first == "alerts":  # both a table and the DAGs that serve all
        return [] if rest in {"flush", "digest", *databases.columns(first)} else [f"alerts has no {rest}"]
    if columns := databases.columns(first):
        return [] if rest in columns else [f"{first} has no column {rest}"]
    block: Any = _declare()["flights"]
    for key in (first, *rest.split(".")) if isinstance(block.get(first), dict) else ():
        if not isinstance(block, dict) or key not in block:
            return [f"params.yaml has no {first}.{rest}"]
        block = block[key]
    return []


def _check_dag(name: str) -> list[str]:
    return [] if (REPOSITORY / "dags" / f"{name}.py").exists() else [f"there is no DAG <use case>.{name}"]


def _check_params(snippet: dict[str, Any]) -> list[str]:
    """Put into params.yaml wherever its keys stand, which the parser must take at one of these places."""
    refused = []
    for number in range(len(list(_list_places(_declare(), snippet)))):
        blocks = _declare()
        list(_list_places(blocks, snippet))[number].update(snippet)
        try:
            parse_use_cases(yaml.safe_dump(blocks), origin="params.yaml")
        except ValueError as error:
            refused.append(str(error))
        else:
            return []
    return ["\n".join(refused) or f"params.yaml has no {', '.join(snippet)}"]


def _list_places(block: dict[str, Any], snippet: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if set(snippet) <= set(block):
        yield block
    for value in block.values():
        if isinstance(value, dict):
            yield from _list_places(value, snippet)


def _declare() -> dict[str, Any]:
    """params.yaml as it is shipped, with an experiment."""
    blocks: dict[str, Any] = yaml.safe_load(PARAMS.read_text())
    blocks["flights"]["experiment"] = dict(EXPERIMENT)
    return blocks
