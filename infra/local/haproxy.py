"""Where the HAProxy program comes from: the system, else Debian's package, unpacked beside the stack's state."""

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ADVICE = "install HAProxy 2.6 or later (`apt-get install haproxy`) and start the stack again"
_APT = ("apt-get", "-q", "-o", "Acquire::Retries=1", "-o", "Acquire::http::Timeout=10", "-o", "APT::Sandbox::User=")


@dataclass(frozen=True)
class Program:
    """A program and the environment it needs."""

    path: str
    environment: Mapping[str, str] = field(default_factory=dict)


def find(folder: Path) -> Program | None:
    """HAProxy on the PATH, else the one unpacked in this folder."""
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    if (path := shutil.which("haproxy", path=search)) is not None:
        return Program(path)
    return _unpacked(folder / "haproxy")


def _unpacked(root: Path) -> Program | None:
    path = root / "usr" / "sbin" / "haproxy"
    if not path.exists():
        return None
    libraries = [str(root / "usr" / "lib"), *(str(p) for p in (root / "usr" / "lib").glob("*-linux-*"))]
    return Program(str(path), {"LD_LIBRARY_PATH": os.pathsep.join(libraries)})


def obtain(folder: Path) -> str | None:
    """Have HAProxy in this folder, unless the system has it; needs no root. Returns what stood in the way."""
    if find(folder) is not None:
        return None
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return f"no haproxy on the PATH, and no apt-get to fetch it with: {ADVICE}"
    work = folder / f"haproxy.{secrets.token_hex(4)}"
    (work / "root").mkdir(parents=True)
    try:
        _download(work)
        _unpack(work)
        (work / "root").rename(folder / "haproxy")
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines() or [str(error)]
        return f"no haproxy on the PATH, and Debian's package could not be fetched ({said[-1]}): {ADVICE}"
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return None


def _run(*command: str, cwd: Path, environment: Mapping[str, str] | None = None) -> str:
    variables = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", **(environment or {})}
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def _download(work: Path) -> None:
    try:
        _fetch_packages(work, ())
    except subprocess.CalledProcessError:  # no package lists, or lists older than the mirror: lists of our own
        (work / "lists" / "partial").mkdir(parents=True)
        (work / "cache" / "archives" / "partial").mkdir(parents=True)
        own = ("-o", f"Dir::State::lists={work / 'lists'}", "-o", f"Dir::Cache={work / 'cache'}")
        _run(*_APT, *own, "update", cwd=work)
        _fetch_packages(work, own)


def _fetch_packages(work: Path, options: tuple[str, ...]) -> None:
    plan = _run(*_APT, *options, "-s", "install", "--no-install-recommends", "haproxy", cwd=work)
    names = set(re.findall(r"^Inst (\S+)", plan, re.MULTILINE)) | {"haproxy"}
    _run(*_APT, *options, "download", *sorted(names), cwd=work)


def _unpack(work: Path) -> None:
    for package in sorted(work.glob("*.deb")):
        _run("dpkg-deb", "-x", str(package), str(work / "root"), cwd=work)
    program = _unpacked(work / "root")
    if program is None:
        raise FileNotFoundError("the package has no usr/sbin/haproxy")
    _run(program.path, "-v", cwd=work, environment=program.environment)  # nothing that does not run is kept
