"""What is written about every image: hadolint, pinned bases, no root, no secret."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.settings import REPOSITORY

DOCKERFILES = sorted(path for top in ("infra", "serving") for path in (REPOSITORY / top).rglob("Dockerfile"))
PINNED = re.compile(
    r"(python:3\.11-slim-bookworm|postgres:16|chrislusf/seaweedfs:4\.48|debian:bookworm-slim|prom/prometheus:v2\.42\.0)(@sha256:[0-9a-f]{64})?"
)
NAMES = {path: str(path.parent.relative_to(REPOSITORY)) for path in DOCKERFILES}


def lines(path: Path) -> list[str]:
    """What says something."""
    return [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]


def instructions(path: Path) -> list[tuple[str, str]]:
    """(word, rest) of a Dockerfile."""
    text = "\n".join(lines(path)).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line[0].isupper()]


def hadolint(path: Path) -> tuple[int, str]:
    program = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([program, "--no-color", str(path)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=NAMES.get)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    assert hadolint(path) == (0, "")


def test_hadolint_says_so_where_a_base_is_not_pinned(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nUSER 10001:10001\n")
    assert "DL3006" in hadolint(tmp_path / "Dockerfile")[1]


@pytest.mark.parametrize("path", DOCKERFILES, ids=NAMES.get)
def test_bases_are_pinned(path: Path) -> None:
    bases = [rest.split()[0] for word, rest in instructions(path) if word == "FROM"]
    assert bases
    assert all(PINNED.fullmatch(base) for base in bases)


@pytest.mark.parametrize("path", DOCKERFILES, ids=NAMES.get)
def test_it_runs_as_nobody_in_particular(path: Path) -> None:
    assert [rest for word, rest in instructions(path) if word == "USER"][-1] == "10001:10001"


@pytest.mark.parametrize("path", DOCKERFILES, ids=NAMES.get)
def test_no_secret_goes_in(path: Path) -> None:
    named = " ".join(rest for word, rest in instructions(path) if word in ("ARG", "ENV"))
    assert not re.search("PASSWORD|SECRET|TOKEN|DSN|KEY", named)


def test_what_the_images_may_hold_is_listed_and_every_package_is_pinned() -> None:
    assert lines(REPOSITORY / ".dockerignore")[0] == "*"
    pinned = {line.split("==")[0] for line in lines(REPOSITORY / "constraints.txt")}
    for path in ("serving/requirements.txt", "infra/mlflow/requirements.txt"):
        assert set(lines(REPOSITORY / path)) <= pinned
