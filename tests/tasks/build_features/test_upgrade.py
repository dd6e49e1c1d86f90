"""Data made by earlier code stays valid: what was renamed since rebuilds nothing, and every past version comes back.

`at_6d6a10f.tar.xz` holds dvc.yaml and features/ of commit 6d6a10f, the last one to call the stage `tasks.materialise`.
"""

import hashlib
import itertools
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from adapters import versions
from adapters.connect import Outside
from adapters.process_group import CommandFailed
from features import definition
from pipeline.handoffs import Snapshot
from pipeline.partitions import Interval
from pipeline.settings import REPOSITORY
from pipeline.spec import UseCase
from tasks.build_features import build as build_features
from tasks.build_features.manifest import CleanObject
from tasks.build_features.rebuild import rebuild_version
from tests.clean_data import TABLES, clean_rows, put_clean, week
from tests.features.world import thinned

OLD, NEW = "python -m tasks.materialise flights", "python -m tasks.build_features.materialise flights"
# A module of the old name for the old command to run, beside the packages of today.
SHIM = {
    "__init__.py": "import pkgutil\n__path__ = pkgutil.extend_path(__path__, __name__)\n",
    "materialise.py": "import runpy\nrunpy.run_module('tasks.build_features.materialise', run_name='__main__')\n",
}


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that a workspace is given, to begin with as commit 6d6a10f has them."""
    with tarfile.open(Path(__file__).with_name("at_6d6a10f.tar.xz")) as archive:
        archive.extractall(tmp_path / "code", filter="data")
    monkeypatch.setattr(build_features, "REPOSITORY", tmp_path / "code")
    return tmp_path / "code"


@pytest.fixture
def old(code: Path, outside: Outside, use_case: UseCase, monkeypatch: pytest.MonkeyPatch) -> Snapshot:
    """A version as 6d6a10f made it: by its feature code, run by its command, with its parameters."""
    with monkeypatch.context() as then:
        unmapped(then)
        then.setattr(UseCase, "model_dump", dumped_with_history_days)
        folder = outside.versions.workspace(use_case.name) / "tasks"
        folder.mkdir(parents=True)
        for name, text in SHIM.items():
            (folder / name).write_text(text)
        rows = {name: thinned(clean_rows(name, week(0))) for name in ("flights", "movements")}
        put_clean(outside, use_case, week(0), **rows)
        built = build_features.build_snapshot(use_case, outside)
    assert built is not None
    shutil.rmtree(folder)
    assert OLD in lock(outside)
    assert OLD not in (REPOSITORY / "dvc.yaml").read_text()
    return built


def dumped_with_history_days(use_case: UseCase, **_: object) -> dict[str, object]:
    block = yaml.safe_load(use_case.model_dump_json())
    return block | {"time": block["time"] | {"history_days": 31}}


def lock(outside: Outside) -> str:
    return (outside.versions.workspace("flights") / "dvc.lock").read_text()


def made(outside: Outside) -> int:
    """Changes with every run of the stage: it writes its index last, also where it made no partition."""
    return (outside.versions.output("flights") / "index.json").stat().st_mtime_ns


def unmapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "_RENAMED_COMMANDS", {})


def test_a_workspace_whose_lock_file_names_the_old_command_does_not_run_the_stage_again(
    old: Snapshot, code: Path, outside: Outside, use_case: UseCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a build that was killed between DVC's commit and ours. Its twin: without the mapping it runs again."""
    (code / "dvc.yaml").write_bytes((REPOSITORY / "dvc.yaml").read_bytes())
    before, locked = made(outside), lock(outside)
    outside.warehouse.execute("delete from snapshots")
    again = build_features.build_snapshot(use_case, outside)
    assert again is not None
    assert (again.version, made(outside)) == (old.version, before)
    assert NEW in lock(outside)
    assert "history_days" not in (outside.versions.workspace("flights") / "params.yaml").read_text()

    unmapped(monkeypatch)
    outside.warehouse.execute("delete from snapshots")
    (outside.versions.workspace("flights") / "dvc.lock").write_text(locked)
    assert build_features.build_snapshot(use_case, outside) is not None
    assert made(outside) > before


def test_a_version_of_the_old_command_and_feature_code_is_rebuilt_to_the_same_hash(
    old: Snapshot, outside: Outside, use_case: UseCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its twin: without the mapping there is no such command."""
    assert rebuild_version(old, outside) == old.version
    unmapped(monkeypatch)
    with pytest.raises(CommandFailed, match="No module named"):
        rebuild_version(old, outside)


# What 6d6a10f makes of `manifest` below: the features' digest, of some partitions that of their inputs, and the file
# (which held only the tables that the features read).
DEFINITION = "77ac7aa5512c23af7c8d7d6e5845a9a573f931b894f7998135315695525a1c44"
INPUTS = {
    "2012-12-31": "151d644afa9d530adc8b7007f673374b810fc273c0962b2f418dba4192694d59",
    "2013-02-11": "7d3e91e750f043f0db6d1a35b50ad49f07d4437f38316710e4dd0fc177dd2246",
    "2013-03-18": "04801ffd52703c2b9f3ef54995537a61741f5d2dd8f3a506ef87d143e8beeb84",
}
MANIFEST = "35e58bcb46e192314186865d93055d1f2ded8a4c13fea547f9bb8b9c173a4afd"


def test_the_same_clean_data_has_the_digests_that_it_had(use_case: UseCase) -> None:
    """Or every partition of a running stack would be made again. A changed definition may change them: on purpose."""
    flights = definition("flights")
    clean: dict[str, dict[Interval, CleanObject]] = {table: {} for table in TABLES}
    for table, number in itertools.product(TABLES, range(12)):
        if (table, number) != ("weather", 5):
            key = use_case.grid.key(week(number))
            stored = CleanObject(
                key=key, interval=week(number), uri=f"s3://lake/{table}/{key}/", sha256=f"{table}{key}"
            )
            clean[table][week(number)] = stored
    manifest = build_features.make_manifest(use_case, flights, clean)
    assert flights.digest() == DEFINITION
    assert {wanted.key: wanted.inputs for wanted in manifest.partitions if wanted.key in INPUTS} == INPUTS
    assert set(manifest.objects) == set(TABLES), "an older definition may read what today's does not"
    read = replace(manifest, objects={table: manifest.objects[table] for table in flights.sources})
    assert hashlib.sha256(read.to_json()).hexdigest() == MANIFEST
