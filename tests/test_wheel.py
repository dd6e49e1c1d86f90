"""A wheel holds what the product needs, and declares what it imports."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from pipeline.settings import REPOSITORY
from tests import architecture

OF_THE_EXTRA_SPARK = {"features.spark", "features.spark_sql"}
# Without the finder of the editable install, which would fill every gap from the checkout.
IMPORT_ALL = """
import importlib, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in getattr(finder, "__module__", "")]
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    path = importlib.import_module(name).__file__
    assert path is None or path.startswith(sys.argv[1]), f"{name} comes from {path}"
"""


def tracked_files() -> list[str]:
    """What git knows of the product's packages."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", *architecture.PACKAGES], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split("\0") if name]


@pytest.fixture(scope="module")
def wheel(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git knows and nothing else."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in [*tracked_files(), "pyproject.toml", "README.md"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(REPOSITORY / name, source / name)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source], check=True)
    [built] = folder.glob("*.whl")
    return built


def test_a_wheel_has_every_file_of_every_package(wheel: Path) -> None:
    assert set(tracked_files()) - set(zipfile.ZipFile(wheel).namelist()) == set()


def import_from(site: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """Import modules from an unpacked wheel, in a process that does not see the checkout."""
    shutil.copyfile(REPOSITORY / "params.yaml", site.parent / "params.yaml")
    environment = {"WINDSOCK_PARAMS": str(site.parent / "params.yaml"), "AIRFLOW_HOME": str(site.parent / "airflow")}
    environment |= {"HOME": str(site.parent), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-W", "ignore", "-c", IMPORT_ALL, str(site), *names]
    return subprocess.run(command, cwd=site.parent, env=environment, capture_output=True, text=True, check=False)


def test_every_module_of_a_wheel_can_be_imported_where_there_is_no_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    names = {name for name in architecture.read_modules(REPOSITORY) if not name.endswith("__main__")}
    done = import_from(site, *sorted(names - OF_THE_EXTRA_SPARK))
    assert done.returncode == 0, done.stderr[-2000:]
    shutil.rmtree(site / "tasks" / "common")
    assert "No module named 'tasks.common'" in import_from(site, "tasks.common.errors").stderr


def declared_distributions(project: dict[str, object]) -> set[str]:
    """The names in `dependencies` and all extras, as package indexes compare them."""
    lists = [project["dependencies"], *project["optional-dependencies"].values()]  # type: ignore[attr-defined,misc]
    names = [re.match(r"[\w.-]+", need)[0] for needs in lists for need in needs]  # type: ignore[attr-defined,index]
    return {_canonical(name) for name in names}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def undeclared_imports(modules: Iterable[architecture.Module], declared: set[str]) -> set[str]:
    """Top-level modules that product code imports and no declared distribution brings."""
    providers = packages_distributions()
    own = {*architecture.PACKAGES, *sys.stdlib_module_names}
    imported = {
        name.partition(".")[0]
        for module in modules
        for node in ast.walk(module.tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    return {name for name in imported - own if not {_canonical(d) for d in providers.get(name, [name])} & declared}


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    modules = architecture.read_modules(REPOSITORY).values()
    declared = declared_distributions(project)
    assert undeclared_imports(modules, declared) == set()
    assert undeclared_imports(modules, declared - {"requests", "sqlalchemy"}) == {"requests", "sqlalchemy"}
