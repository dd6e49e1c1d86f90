"""Programs that no wheel has: the system's own, else that of Debian's package, unpacked in a folder without root."""

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

INSTALL_ADVICE = "install it (`apt-get install {0}`) and start again"
_APT = ("apt-get", "-q", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=10", "-o", "APT::Sandbox::User=")


@dataclass(frozen=True)
class InstalledProgram:
    """A program and the environment it needs."""

    path: str
    environment: Mapping[str, str] = field(default_factory=dict)


def find_program(name: str, folder: Path, *, package: str | None = None) -> InstalledProgram | None:
    """A program on the PATH, else that of the package (by default of the same name) unpacked in this folder."""
    if (path := shutil.which(name, path=_search_path())) is not None:
        return InstalledProgram(path)
    return _find_unpacked(name, folder / (package or name))


def _search_path() -> str:
    """The PATH, and the sbin beside each bin on it: Debian keeps servers there, and out of an ordinary user's PATH."""
    folders = [Path(folder) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    beside = [folder.with_name("sbin") for folder in folders if folder.name == "bin"]
    return os.pathsep.join(str(folder) for folder in (*folders, *beside))


def _find_unpacked(name: str, root: Path) -> InstalledProgram | None:
    path = next((p for p in (root / "usr" / "sbin" / name, root / "usr" / "bin" / name) if p.exists()), None)
    if path is None:
        return None
    libraries = [str(root / "usr" / "lib"), *(str(p) for p in (root / "usr" / "lib").glob("*-linux-*"))]
    return InstalledProgram(str(path), {"LD_LIBRARY_PATH": os.pathsep.join(libraries)})


def fetch_program(name: str, folder: Path, *, probe: str = "--version") -> str | None:
    """Unpack the package of this program in this folder, unless the system has the program; needs no root.

    Args:
        name: of the package, and of its program.
        folder: is there already.
        probe: an option with which the program answers and ends: one that does not run is not kept.

    Returns:
        Why it cannot be had; None where it can.
    """
    if find_program(name, folder) is not None:
        return None
    advice = INSTALL_ADVICE.format(name)
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return f"no {name} on the PATH, and no apt-get to fetch it with: {advice}"
    work = folder / f"{name}.{secrets.token_hex(4)}"
    (work / "root").mkdir(parents=True)
    try:
        _download_packages(name, work)
        _unpack(name, work, probe)
        (work / "root").rename(folder / name)
    except (OSError, subprocess.SubprocessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines() or [str(error)]
        return f"no {name} on the PATH, and Debian's package could not be fetched ({lines[-1]}): {advice}"
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return None


def _run(*command: str, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    variables = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", **(environment or {})}
    return subprocess.run(
        command, cwd=cwd, env=variables, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def _download_packages(name: str, work: Path) -> None:
    try:
        _download_with(name, work, ())
    except subprocess.CalledProcessError:  # no package lists, or lists older than the mirror: lists of our own
        (work / "lists" / "partial").mkdir(parents=True)
        (work / "cache" / "archives" / "partial").mkdir(parents=True)
        own = ("-o", f"Dir::State::lists={work / 'lists'}", "-o", f"Dir::Cache={work / 'cache'}")
        _run(*_APT, *own, "update", cwd=work)
        _download_with(name, work, own)


def _download_with(name: str, work: Path, options: tuple[str, ...]) -> None:
    plan = _run(*_APT, *options, "-s", "install", "--no-install-recommends", name, cwd=work)
    names = set(re.findall(r"^Inst (\S+)", plan, re.MULTILINE)) | {name}
    _run(*_APT, *options, "download", *sorted(names), cwd=work)


def _unpack(name: str, work: Path, probe: str) -> None:
    for package in sorted(work.glob("*.deb")):
        _run("dpkg-deb", "-x", str(package), str(work / "root"), cwd=work)
    program = _find_unpacked(name, work / "root")
    if program is None:
        raise FileNotFoundError(f"the package has no program {name}")
    _run(program.path, probe, cwd=work, environment=program.environment)  # nothing that does not run is kept
