"""The command that makes a past dataset version again."""

import subprocess
import sys

import pytest

from adapters.connect import Outside
from pipeline.settings import REPOSITORY, Settings
from pipeline.spec import UseCase
from tasks.build_features import build, rebuild
from tests.clean_data import week
from tests.tasks.build_features.test_build import put
from tests.tasks.killed import environment


def run(settings: Settings, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tasks.build_features.rebuild", *arguments]
    return subprocess.run(
        command, env=environment(settings), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )


def test_a_past_version_is_rebuilt_to_its_hash_and_another_hash_is_said(
    outside: Outside, settings: Settings, use_case: UseCase
) -> None:
    put(outside, use_case, 0)
    first = build.build_snapshot(use_case, outside)
    put(outside, use_case, 1)
    second = build.build_snapshot(use_case, outside)
    assert first is not None
    assert second is not None
    assert second.end == week(1).end
    done = run(settings, "flights", first.version)
    assert (done.returncode, done.stdout) == (0, f"flights version {first.version}: rebuilt, the same hash\n")

    outside.warehouse.execute("update snapshots set git_revision = %s", (second.git_revision,))
    differs = run(settings, "flights", first.version)
    assert (differs.returncode, differs.stdout) == (1, f"flights version {first.version}: DIFFERS: {second.version}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nonsense", "1"], "no use case 'nonsense'"), (["flights", "1"], "flights has no dataset version 1")],
)
def test_what_there_is_not_ends_with_2_and_says_so(
    outside: Outside,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr("adapters.connect.outside", lambda: outside)
    assert rebuild.main(arguments) == 2
    assert message in capsys.readouterr().err
