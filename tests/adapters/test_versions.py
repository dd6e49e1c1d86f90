"""Datasets built by the real DVC, kept in a real S3."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from adapters.errors import REFUSAL, Corrupt
from adapters.process_group import CommandFailed
from adapters.process_group import run as leashed
from adapters.versions import Versions
from pipeline.settings import REPOSITORY, Settings
from tests.tasks.killed import environment

PIPELINE = """
stages:
  features:
    foreach: [toy]
    do:
      cmd: mkdir -p data/toy/part && cp inputs/toy.txt data/toy/part/a.txt && %s
      deps: [inputs/toy.txt]
      outs:
        - data/toy:
            persist: true
"""


def inputs(text: str, then: str = "cp inputs/toy.txt data/toy/b.txt") -> dict[str, bytes]:
    return {"dvc.yaml": (PIPELINE % then).encode(), "inputs/toy.txt": text.encode()}


@pytest.fixture
def versions(settings: Settings) -> Versions:
    return Versions(settings=settings)


def cached(versions: Versions, path: Path) -> Path:
    """The cache's own file, to damage."""
    assert versions.workspace("toy") in path.parents
    path.chmod(0o644)
    return path


def test_the_same_inputs_give_the_same_version_and_others_another(versions: Versions) -> None:
    first = versions.repro("toy", inputs("one"), {})
    assert versions.repro("toy", inputs("one"), {}) == first
    second = versions.repro("toy", inputs("two"), {})
    assert second.version != first.version
    assert second.git_revision != first.git_revision
    for built, text in ((first, "one"), (second, "two")):
        files = versions.files("toy", built.version)
        assert {name: path.read_text() for name, path in files.items()} == {"b.txt": text, "part/a.txt": text}


def test_a_missing_or_tampered_object_is_fetched_again_from_s3(versions: Versions) -> None:
    version = versions.repro("toy", inputs("one"), {}).version
    path = versions.files("toy", version)["b.txt"]
    cached(versions, path).write_text("eno")
    assert versions.files("toy", version)["b.txt"].read_text() == "one"
    path.unlink()
    assert versions.files("toy", version)["b.txt"].read_text() == "one"


def test_an_object_tampered_with_in_s3_too_is_an_error_until_it_is_rebuilt(
    versions: Versions, settings: Settings
) -> None:
    from adapters.lake import Lake

    built = versions.repro("toy", inputs("one"), {})
    version = built.version
    path = versions.files("toy", version)["b.txt"]
    s = settings
    store = Lake(s.s3_endpoint, s.s3_access_key, s.s3_secret_key, s.versions_bucket, s.home / "cache")
    [uri] = [uri for uri in store.list("toy/") if uri.endswith(f"{path.parent.name}/{path.name}")]
    store.put_named(uri.split("/", 3)[3], b"eno", "application/octet-stream")
    path.unlink()
    with pytest.raises(Corrupt, match="changed in the store"):
        versions.files("toy", version)
    store.client.delete_object(Bucket=s.versions_bucket, Key=uri.split("/", 3)[3])
    assert versions.rebuild("toy", built.git_revision, {}).version == version
    assert versions.files("toy", version)["b.txt"].read_text() == "one"


def test_a_version_nobody_built_is_not_found(versions: Versions) -> None:
    with pytest.raises(FileNotFoundError):
        versions.files("toy", "0" * 32 + ".dir")


def test_dvc_itself_pulls_a_version_into_a_clone(versions: Versions, tmp_path: Path) -> None:
    """What we put into S3 is DVC's own layout."""
    versions.repro("toy", inputs("one"), {})
    workspace = versions.workspace("toy")
    there = versions._environment()
    leashed(["git", "clone", "--quiet", str(workspace), str(tmp_path / "clone")], folder=tmp_path, environment=there)
    (tmp_path / "clone/.dvc/config.local").write_bytes((workspace / ".dvc/config.local").read_bytes())
    leashed([sys.executable, "-m", "dvc", "pull"], folder=tmp_path / "clone", environment=there)
    assert (tmp_path / "clone/data/toy/part/a.txt").read_text() == "one"


def test_a_lost_workspace_comes_back_with_its_history(versions: Versions, settings: Settings) -> None:
    first = versions.repro("toy", inputs("one"), {})
    leashed(["rm", "-rf", str(versions.workspace("toy"))], folder=settings.home, environment={"PATH": os.defpath})
    assert versions.files("toy", first.version)["b.txt"].read_text() == "one"
    assert versions.repro("toy", inputs("two"), {}).version != first.version
    assert versions.committed("toy", first.git_revision, "inputs/toy.txt") == b"one"
    assert versions.rebuild("toy", first.git_revision, {}).version == first.version


def test_a_stage_that_fails_says_why_and_commits_nothing(versions: Versions) -> None:
    before = versions.repro("toy", inputs("one"), {})
    with pytest.raises(CommandFailed, match="no such wind"):
        versions.repro("toy", inputs("two", "echo no such wind && false"), {})
    assert versions.committed("toy", "HEAD", "inputs/toy.txt") == b"one"
    assert versions.repro("toy", inputs("one"), {}).version == before.version


def test_a_stage_that_refuses_its_inputs_says_why_as_an_error_that_no_repetition_mends(versions: Versions) -> None:
    refuses = f"echo 'a wind without a direction' > {REFUSAL} && false"
    with pytest.raises(ValueError, match="a wind without a direction"):
        versions.repro("toy", inputs("one", refuses), {})
    with pytest.raises(CommandFailed):  # which is no ValueError: the refusal before is not this run's
        versions.repro("toy", inputs("one", "false"), {})


def test_no_secret_is_committed(versions: Versions, settings: Settings) -> None:
    revision = versions.repro("toy", inputs("one"), {}).git_revision
    shown = versions._git(versions.workspace("toy"), "grep", "-c", "", revision)
    assert "config.local" not in shown
    everything = versions._git(versions.workspace("toy"), "log", "-p")
    assert settings.s3_secret_key not in everything
    assert (versions.workspace("toy") / ".dvc/config.local").stat().st_mode & 0o077 == 0


def test_killing_the_build_leaves_no_process_behind_and_a_rerun_works(versions: Versions, settings: Settings) -> None:
    """-9 to the process that asked: DVC and its stage end with it, and DVC's stale locks stop nobody."""
    slow = inputs("one", "echo $$ > started && sleep 600")
    code = f"""
from adapters.versions import Versions
from pipeline.settings import settings
Versions(settings=settings()).repro("toy", {slow!r}, {{}})
"""
    asked = subprocess.Popen([sys.executable, "-c", code], env=environment(settings), cwd=REPOSITORY)
    mark, deadline = versions.workspace("toy") / "started", time.monotonic() + 120
    while not (mark.exists() and mark.read_text().strip()):
        assert asked.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stage = psutil.Process(int(mark.read_text()))
    family = [stage, *stage.parents()]
    family = family[: [p.pid for p in family].index(asked.pid)]
    assert len(family) >= 2  # the stage and DVC at least
    asked.send_signal(signal.SIGKILL)
    asked.wait()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
    assert versions.files("toy", versions.repro("toy", inputs("one"), {}).version)["b.txt"].read_text() == "one"
