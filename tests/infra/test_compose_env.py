"""The .env of docker-compose: fresh secrets once, and never anything changed that is set."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from infra.compose import env
from infra.compose.env import fill_template
from infra.settings import parse_assignments
from pipeline.settings import REPOSITORY

pytestmark = pytest.mark.usefixtures("processes")  # the env file names the code, which git knows

TEMPLATE = (REPOSITORY / ".env.example").read_text()
SHA = "a" * 40


def test_every_secret_is_made_and_none_twice() -> None:
    one, other = (parse_assignments(fill_template(TEMPLATE, {}, SHA)) for _ in range(2))
    secrets = [name for name in one if name.startswith("SECRET_")]
    assert len(secrets) > 10
    assert all(len(one[name]) >= 16 for name in secrets)
    assert len({*(one[name] for name in secrets), *(other[name] for name in secrets)}) == 2 * len(secrets)
    Fernet(one["SECRET_FERNET"])


def test_the_example_itself_holds_no_secret() -> None:
    assert not any(value for name, value in parse_assignments(TEMPLATE).items() if name.startswith("SECRET_"))


def test_what_is_set_stays_and_the_commit_is_that_of_the_code() -> None:
    before = parse_assignments(fill_template(TEMPLATE, {}, SHA)) | {
        "AIRFLOW_PORT": "9999",
        "GATEWAY_RATE": "",
        "COMPOSE_FILE": "x",
    }
    after = parse_assignments(fill_template(TEMPLATE, before, "b" * 40))
    assert after == before | {"WINDSOCK_CODE_SHA": "b" * 40}


def test_the_file_is_for_its_owner_only_and_written_again_it_keeps_its_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env.example").write_text(TEMPLATE)
    monkeypatch.setattr(env, "REPOSITORY", tmp_path)
    monkeypatch.setattr(env, "find_orphaned_volume", lambda: None)  # whatever an engine on this machine may have stored
    assert env.main() == 0
    first = (tmp_path / ".env").read_text()
    assert stat.S_IMODE((tmp_path / ".env").stat().st_mode) == 0o600
    assert env.main() == 0
    assert (tmp_path / ".env").read_text() == first


@pytest.mark.parametrize(("volumes", "code"), [("other_postgres\n", 0), ("windsock_postgres\n", 1)])
def test_fresh_secrets_do_not_shut_out_what_an_earlier_stack_stored(
    volumes: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / "docker"
    engine.write_text(f"#!/bin/sh\nprintf '{volumes}'\n")
    engine.chmod(0o755)
    (tmp_path / ".env.example").write_text(TEMPLATE)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(env, "REPOSITORY", tmp_path)
    assert env.main() == code
    assert (tmp_path / ".env").exists() is (code == 0)
    assert ("put that file back" in capsys.readouterr().err) is (code == 1)
    (tmp_path / ".env").write_text("SECRET_WINDSOCK=known\n")
    assert env.main() == 0, "who has the secrets goes on"


def test_comments_stay_and_what_is_no_assignment_is_refused() -> None:
    assert "# Ports, on 127.0.0.1.\n" in fill_template(TEMPLATE, {}, SHA)
    with pytest.raises(ValueError, match="expected NAME=VALUE, got 'SECRET'"):
        parse_assignments("SECRET\n")


def test_it_is_written_before_anything_is_installed() -> None:
    bare = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); import infra.compose.env",
    ]
    done = subprocess.run(bare, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
