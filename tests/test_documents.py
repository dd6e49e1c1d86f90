"""The documents are true: what they name exists."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from infra.local.__main__ import main as manage_stack
from pipeline.settings import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def make_verbs() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*## ", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))


def tracked_folders() -> set[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return {line.partition("/")[0] for line in listed.splitlines() if "/" in line and not line.startswith(".")}


@pytest.mark.usefixtures("processes")
def test_the_readme_shows_every_folder_of_the_repository() -> None:
    tree = README.partition("## The tree")[2].partition("```")[2].partition("```")[0]
    assert set(re.findall(r"^([a-z]+)/ ", tree, flags=re.MULTILINE)) == tracked_folders()
    for file in re.findall(r"^([a-z]+\.yaml) ", tree, flags=re.MULTILINE):
        assert (REPOSITORY / file).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_make_verb_and_link_that_a_page_names_exists(page: object) -> None:
    text = page.read_text()  # type: ignore[attr-defined]
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE)) <= make_verbs()
    for link in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert (page.parent / link).exists(), link  # type: ignore[attr-defined]


def test_the_readme_names_the_two_commands() -> None:
    assert {"demo", "test"} <= make_verbs()
    assert "make demo" in README
    assert "make test" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_for_the_stack_that_a_page_names_is_understood(page: Path, tmp_path: Path) -> None:
    """Where there is no stack most end with 1 and say so; a command line that is wrong ends with 2."""
    for words in re.findall(r"python -m infra\.local ([^`\n]+)", page.read_text()):
        if not words.startswith(("up", "run")):
            assert manage_stack(["--home", str(tmp_path), *shlex.split(words.replace("<client>", "someone"))]) in (0, 1)
