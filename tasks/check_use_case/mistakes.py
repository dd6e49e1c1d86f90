"""A mistake: where something stands, what is wrong with it, and what to set."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from pipeline.settings import REPOSITORY

PARAMS = "params.yaml"


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """Something that must be changed: `key` is a path in params.yaml, or a name in another file."""

    file: str
    key: str
    found: str
    set_to: str

    def describe(self, use_case: str, params: Path) -> str:
        """One line: file, line, key, what is there, and what to set."""
        line, key = _find_line(self, use_case, params)
        place = self.file if line is None else f"{self.file}:{line}"
        return f"{place}  {key}: {self.found}. Set: {self.set_to}"


def in_params(key: str, found: object, set_to: str) -> Mistake:
    """Of a key of the use case's block."""
    return Mistake(file=PARAMS, key=key, found=str(found), set_to=set_to)


def in_file(file: str, key: str, found: str, set_to: str) -> Mistake:
    """Of a name in a module, such as `features/x.py`."""
    return Mistake(file=file, key=key, found=found, set_to=set_to)


def _find_line(finding: Mistake, use_case: str, params: Path) -> tuple[int | None, str]:
    if finding.file == PARAMS:
        return _find_key(params.read_text(), [use_case, *finding.key.split(".")]), f"{use_case}.{finding.key}"
    path = REPOSITORY / finding.file
    return (_find_word(path.read_text().splitlines(), finding.key) if path.exists() else None), finding.key


def _find_key(text: str, names: Iterable[str]) -> int | None:
    """The line of a key of nested blocks, or of the last of its blocks that is there."""
    node, line = yaml.compose(text, Loader=yaml.SafeLoader), None
    for name in names:
        inside = node.value if isinstance(node, yaml.MappingNode) else []
        both = next(((key, value) for key, value in inside if key.value == name), None)
        if both is None:
            break
        line, node = both[0].start_mark.line + 1, both[1]
    return line


def _find_word(lines: list[str], word: str) -> int | None:
    quoted = (f'"{word}"', f"'{word}'", word)
    return next((number for text in quoted for number, line in enumerate(lines, start=1) if text in line), None)
