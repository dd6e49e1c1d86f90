"""What is written about every image: hadolint, pinned bases, no root, no secret."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from infra.local import s3
from pipeline.settings import REPOSITORY

DOCKERFILES = sorted(path for top in ("infra", "serving") for path in (REPOSITORY / top).rglob("Dockerfile"))
PINNED = re.compile(
    r"(python:3\.11-slim-bookworm|postgres:16|chrislusf/seaweedfs:4\.48|debian:bookworm-slim|haproxy:2\.6|prom/prometheus:v2\.42\.0)(@sha256:[0-9a-f]{64})?"
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


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("path", DOCKERFILES, ids=NAMES.get)
def test_hadolint_has_nothing_to_say(path: Path) -> None:
    assert hadolint(path) == (0, "")


@pytest.mark.usefixtures("processes")
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


@pytest.mark.parametrize("path", DOCKERFILES, ids=NAMES.get)
def test_what_is_installed_is_what_was_tested(path: Path) -> None:
    installs = re.findall(r"pip[^&]*? install [^&]*", " ".join(rest for _, rest in instructions(path)))
    assert all(re.search(r"--constraint \S*constraints\.txt", one) for one in installs), installs


def copied(path: Path) -> set[str]:
    """The packages of ours that an image holds."""
    return {
        rest.split()[0] for word, rest in instructions(path) if word == "COPY" and rest.split()[-1].startswith("/app/")
    }


def test_each_image_holds_the_packages_that_it_runs() -> None:
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert {f"!{name}" for name in packages} <= set(lines(REPOSITORY / ".dockerignore"))
    airflow = REPOSITORY / "infra" / "airflow" / "Dockerfile"
    assert packages <= copied(airflow)
    assert any(re.search("install .* git ", rest) for word, rest in instructions(airflow) if word == "RUN")  # DVC's
    assert copied(REPOSITORY / "serving" / "Dockerfile") == {"features", "models", "serving"}


def test_the_serving_image_asks_its_models_and_hides_what_decides() -> None:
    said = dict(instructions(REPOSITORY / "serving" / "Dockerfile"))
    assert "serving.health" in said["HEALTHCHECK"]
    assert said["EXPOSE"].split() == ["8085", "8087"]  # 8086 is management


def test_prometheus_holds_the_rules_that_it_reads() -> None:
    folder = REPOSITORY / "infra" / "prometheus"
    wanted = {"prometheus.yaml", *yaml.safe_load((folder / "prometheus.yaml").read_text())["rule_files"]}
    held = [rest.split()[:-1] for word, rest in instructions(folder / "Dockerfile") if word == "COPY"]
    assert {Path(name).name for names in held for name in names} == wanted


def test_databases_ask_for_a_password() -> None:
    postgres, redis = ((REPOSITORY / "infra" / name / "start.sh").read_text() for name in ("postgres", "redis"))
    assert "--auth=scram-sha-256" in postgres
    assert "host all all all scram-sha-256" in postgres
    assert "trust" not in postgres
    assert "\nrequirepass $REDISCLI_AUTH\n" in redis


def test_the_store_is_started_as_the_embedded_one_is(tmp_path: Path) -> None:
    port = 40000
    _, mini, *embedded = s3.plan_s3(tmp_path, defaultdict(lambda: port), "a", "b", {}).command
    [command] = [rest for word, rest in instructions(REPOSITORY / "infra" / "s3" / "Dockerfile") if word == "CMD"]
    assert json.loads(command)[0] == mini
    ours = {"-dir=/data", "-s3.localSocket=/run/s3/s3.sock"}  # keys come from the environment, ports are the usual ones
    theirs = {flag for flag in embedded if flag.endswith(f"={port}") or str(tmp_path) in flag}
    tests_only = {"-s3.allowDeleteBucketNotEmpty=true"}
    assert set(json.loads(command)[1:]) - ours == set(embedded) - theirs - tests_only


def test_what_the_images_may_hold_is_listed_and_every_package_is_pinned() -> None:
    assert lines(REPOSITORY / ".dockerignore")[0] == "*"
    pinned = {line.split("==")[0] for line in lines(REPOSITORY / "constraints.txt")}
    for path in ("serving/requirements.txt", "infra/mlflow/requirements.txt"):
        assert set(lines(REPOSITORY / path)) <= pinned
