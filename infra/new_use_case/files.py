"""What is written: new files, a block at the end of params.yaml, a name in dvc.yaml. Overwrites nothing."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from adapters.files import write_atomically

_FOREACH = re.compile(r"^(\s*foreach: \[)([^\]\n]*)(\])", re.MULTILINE)
_TEST = '''"""`{name}` is ready for its backfill, as far as its files say; `make check-use-case` asks the rows."""

from datetime import UTC, datetime

import features
from expectations import suites
from pipeline.settings import REPOSITORY
from pipeline.spec import use_cases
from tasks.check_use_case.declared_check import check_blanks, check_definition, check_suites
from tasks.check_use_case.params_check import check_params

USE_CASE = use_cases(REPOSITORY / "params.yaml")["{name}"]


def test_nothing_is_left_blank() -> None:
    assert list(check_blanks(USE_CASE)) == []


def test_what_is_declared_agrees() -> None:
    declared, definition = suites("{name}"), features.definition("{name}")
    assert list(check_params(USE_CASE, datetime.now(UTC).date())) == []
    assert list(check_suites(USE_CASE, declared)) == []
    assert list(check_definition(USE_CASE, definition, declared)) == []
'''


def list_paths(name: str) -> Mapping[str, str]:
    """What a module of a use case is -> its path from the root."""
    return {
        "suites": f"expectations/{name}.py",
        "definition": f"features/{name}.py",
        "test": f"tests/use_cases/test_{name}.py",
    }


def is_complete(root: Path, params: Path, name: str) -> bool:
    """Whether all of it is there."""
    there = all((root / path).exists() for path in list_paths(name).values())
    return there and _has_block(params, name) and name in _read_foreach(root)


def write_all(root: Path, params: Path, name: str, *, block: str, suites: str, definition: str) -> Iterator[str]:
    """Write what is not there yet; a line each: what was written, and what was there and stays.

    Raises:
        ValueError: dvc.yaml has no list that a name can be added to.
    """
    texts = {"suites": suites, "definition": definition, "test": _TEST.format(name=name)}
    package = root / "tests" / "use_cases" / "__init__.py"
    if not package.exists():
        package.parent.mkdir(parents=True, exist_ok=True)
        package.write_text("")
    written = []
    for what, path in list_paths(name).items():
        if (root / path).exists():
            yield f"{path}: is there, and stays"
        else:
            _write(root / path, texts[what])
            written.append(root / path)
            yield f"{path}: written"
    _format(written)
    if _has_block(params, name):
        yield f"{params.name}: {name} is there, and stays"
    else:
        _write(params, params.read_text().rstrip("\n") + "\n" + block)
        yield f"{params.name}: {name} added"
    yield _add_to_foreach(root, name)


def _has_block(params: Path, name: str) -> bool:
    return name in (yaml.safe_load(params.read_text()) or {})


def _read_foreach(root: Path) -> list[str]:
    return list(yaml.safe_load((root / "dvc.yaml").read_text())["stages"]["features"]["foreach"])


def _add_to_foreach(root: Path, name: str) -> str:
    if name in _read_foreach(root):
        return f"dvc.yaml: {name} is there, and stays"
    text, added = _FOREACH.subn(
        lambda m: f"{m[1]}{f'{m[2]}, {name}' if m[2].strip() else name}{m[3]}", (root / "dvc.yaml").read_text(), count=1
    )
    if not added:
        raise ValueError(f"dvc.yaml: expected a list such as `foreach: [a, b]`, to which {name} is added: add it there")
    _write(root / "dvc.yaml", text)
    return f"dvc.yaml: {name} added"


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode(), mode=0o644)


def _format(paths: list[Path]) -> None:
    """As `make check` wants them, where its formatter is installed; they mean the same without."""
    ruff = Path(sys.executable).parent / "ruff"
    if paths and ruff.exists():
        subprocess.run([ruff, "format", "--quiet", *paths], check=True)
