"""What the pages tell a reader to type: the blocks, and the commands, statements and settings in their running text."""

import re
from dataclasses import dataclass
from pathlib import Path

from pipeline.settings import REPOSITORY

PAGES = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
PAGES += sorted(path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").rglob("*.md"))

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4,}\S.*\n)+")  # after an empty line; else it goes on with a list or a paragraph
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A piece of a page that is to be typed or looked at as it is; the language is '' where none is said."""

    language: str
    text: str


def read_page(page: str) -> str:
    """A page by its path from the root of the repository."""
    return (REPOSITORY / page).read_text()


def list_blocks(text: str) -> list[Block]:
    """Fenced blocks, then indented ones."""
    found = [Block(language=language, text=inside) for language, inside in _FENCED.findall(text)]
    indented = _INDENTED.findall(_FENCED.sub("", text) + "\n")
    return found + [Block(language="", text=re.sub("^ {4}", "", block, flags=re.MULTILINE)) for block in indented]


def read_blocks(page: str, language: str) -> list[str]:
    """All blocks of one language that a page has, for the test that runs them."""
    return [block.text for block in list_blocks(read_page(page)) if block.language == language]


def list_spans(text: str) -> list[str]:
    """What stands between single backticks; one that is broken over lines is one line."""
    return [" ".join(span.split()) for span in _SPAN.findall(_INDENTED.sub("", _FENCED.sub("", text)))]


def is_run_by(test_file: str, page: str, language: str) -> bool:
    """Whether a test takes all blocks of a language of this page."""
    return f'read_blocks("{page}", "{language}")' in Path(REPOSITORY / test_file).read_text()
