"""Makes a small state as commit 6d6a10f leaves it; run it in a checkout of that commit, with its environment.

    python make_state.py <file.tar.xz>

A thin slice of the shipped flights goes through that commit's own steps: six weeks of history, a champion, a live week
scored and decided on, a deployment, and a search that was interrupted. What the stores then hold becomes the archive:
the dump of each database, the objects of S3, and the workspace of datasets; reports, docs, plots, caches and
credentials are left out, and what of the source had landed.
"""

import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import yaml

from infra.local import s3
from infra.local.home import base_environment
from infra.local.postgres import binaries
from infra.local.stack import Stack
from pipeline.settings import REPOSITORY

LEFT_OUT = re.compile(
    r"^objects/lake/(reports|docs)/|/artifacts/plots/|/\.dvc/(cache|tmp)|config\.local|/\.git/(hooks|logs)|__pycache__"
    r"|local/paths\.json$|/\.dvc-state/|/lock$"
)
CARRIERS = ("WN", "FL", "F9", "AS", "YV")
STEPS = """
from datetime import date, timedelta
from adapters.connect import outside
from infra.replay import flights_source
from pipeline.partitions import Interval, utc
from pipeline.spec import use_cases
from tasks import build_features, dataset, deployments, evaluate, ingest, monitor, online_features, promote, refit
from tasks import score, tune, validate
from adapters.warehouse import Fence

W = outside()
U = use_cases(W.settings.params)["flights"]
flights_source.load(W.settings.source_dsn)
with W.source.transaction() as at:
    for table in ("flights", "movements"):
        at.execute(f"delete from {table} where carrier <> all(%s) or known_at >= '2013-03-04'", (%(carriers)r,))
    at.execute("delete from weather where known_at >= '2013-03-04'")
    at.execute("delete from planes where tailnum not in (select tailnum from flights where tailnum is not null)")
    at.execute("delete from airports where faa not in (select dest from flights union select origin from flights)")
def take(week):
    validate.validate(U, ingest.land(U, week, W), W)

def weeks(first, last):
    return U.grid.covering(Interval(utc(first), utc(last)))

for week in weeks(date(2012, 12, 31), date(2013, 2, 11)):
    take(week)
build_features.build(U, W)
snapshot = dataset.latest_snapshot(U, W)
online_features.refresh(U, snapshot, W)
as_of = utc(date(2013, 2, 11))
tune.search(U, snapshot, as_of, 2, W)
study = tune.found(U, snapshot, as_of, W)
candidate = refit.refit(U, snapshot, study, as_of, "first champion", None, W)
verdict = evaluate.judge(U, candidate, W)
release = promote.promote(U, verdict, W, actor="state of 6d6a10f")
assert release.outcome == "promoted", (release, verdict)
with W.warehouse.transaction() as at:
    deployments.open_row(at, dict(
        deployment_id=f"flights-{release.revision}-{release.champion_version}",
        request_id=f"release-{release.revision}",
        use_case="flights", kind="rollout", version=release.champion_version, revision=release.revision, stage="full",
        as_of=release.as_of, actor="state of 6d6a10f", reason="the champion was promoted", previous_version=None))
opened = deployments.of_id(f"flights-{release.revision}-{release.champion_version}", W)
with W.warehouse.transaction() as at:
    deployments.finish(at, opened, "full", W)
take(U.grid.partition("2013-02-11"))
build_features.build(U, W)
snapshot = dataset.latest_snapshot(U, W)
online_features.refresh(U, snapshot, W)
score.score(U, W)
print(monitor.monitor(U, W))
# A search for the next training that was interrupted after its first trial.
tune.search(U, snapshot, utc(date(2013, 2, 18)), 1, W)
print(tune.study_name(U, snapshot, utc(date(2013, 2, 18)), __import__("features").definition("flights")))
with W.source.transaction() as at:
    for table in ("flights", "movements", "weather"):
        at.execute(f"delete from {table} where known_at < '2013-02-18'")
"""


def small_params() -> str:
    params = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    block = params["flights"]
    for table in ("flights", "movements"):
        block["source"]["tables"][table]["min_rows"] = 1
    block["train"] |= {
        "trials": 2,
        "trials_at_once": 2,
        "rungs": [3, 12],
        "networks": ["mlp"],
        "hidden_units": [8],
        "layers": [1],
    }
    block["train"] |= {
        "validation_days": 7,
        "holdout_days": 8,
        "min_rows": 50,
        "ensemble_seeds": 1,
        "batch_rows": 32,
        "learning_rate": [0.01, 0.02],
    }
    block["gate"] |= {
        "min_rows": 20,
        "min_days": 5,
        "resamples": 200,
        "max_calibration_gap": 1.0,
        "confidence": 0.51,
        "min_effect": 0.0,
        "metric": "auc",
    }
    block["gate"]["leak_alarm"] = {"metric": "auc", "above": 0.999}
    return yaml.safe_dump(params)


def main(archive: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="windsock-state-"))
    folder.chmod(0o755)
    stack = Stack(folder / "home")
    params = folder / "params.yaml"
    params.write_text(small_params())
    os.environ["WINDSOCK_PARAMS"] = str(params)
    try:
        stack.start(("postgres", "s3", "mlflow"), owner=os.getpid())
        environment = {
            **base_environment(),
            **stack.environment(),
            "WINDSOCK_PARAMS": str(params),
            "PYTHONPATH": str(REPOSITORY),
        }
        from adapters.warehouse import Warehouse

        Warehouse(stack.home().dsn("warehouse")).migrate()
        program = STEPS.replace("%(carriers)r", repr(list(CARRIERS)))
        subprocess.run([sys.executable, "-c", program], env=environment, check=True, cwd=folder)
        home = stack.home()
        with tarfile.open(archive, "w:xz") as tar:

            def add(name: str, content: bytes) -> None:
                if LEFT_OUT.search(name):
                    return
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))

            add("params.yaml", params.read_bytes())
            for database in ("warehouse", "source", "optuna", "mlflow"):
                dump = subprocess.run(
                    [
                        binaries() / "pg_dump",
                        "--no-owner",
                        "--no-acl",
                        "--inserts",
                        "--rows-per-insert=500",
                        home.dsn(database),
                    ],
                    check=True,
                    capture_output=True,
                    env={"PATH": "/usr/bin", "LC_ALL": "C.UTF-8"},
                ).stdout
                add(f"databases/{database}.sql", dump)
            client = s3.client(home.url("s3"), home.secrets["s3_access"], home.secrets["s3_secret"])
            for bucket in [b["Name"] for b in client.list_buckets()["Buckets"]]:
                for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
                    for entry in page.get("Contents", []):
                        add(
                            f"objects/{bucket}/{entry['Key']}",
                            client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read(),
                        )
            for path in sorted((folder / "home" / "workspaces").rglob("*")):
                name = "workspaces/" + path.relative_to(folder / "home" / "workspaces").as_posix()
                if path.is_file() and not path.is_symlink():
                    add(name, path.read_bytes())
    finally:
        stack.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
