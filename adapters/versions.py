"""DVC: feature datasets built and versioned in a git repository of their own, never in the user's checkout.

One workspace a use case: `<home>/workspaces/<use case>`, a git and DVC repository that holds what a build reads (the
pipeline, the parameters, the feature code, the manifest of inputs) and the lock file that names what came out. Objects
lie in DVC's own layout, in the workspace's cache and in S3, so `dvc pull` in a clone gets them too; they are looked up
and moved here directly, which is a second or two quicker a build than the DVC command line.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from adapters.errors import REFUSAL, Corrupt
from adapters.files import hold_lock, write_atomically
from adapters.lake import Lake
from adapters.process_group import CommandFailed, run
from pipeline.settings import REPOSITORY, Settings

# Where the cluster is that may compute features, and how it is reached, does not change what comes out.
_INHERITED = ("HOME", "LANG", "LC_ALL", "TMPDIR", "JAVA_HOME", "SPARK_CONF_DIR", "SPARK_MASTER")
_IGNORED = "/data/\n/local/\n/lock\n"
# Commands of stages as earlier code wrote them -> what the same command is called today. Without this DVC would run a
# stage again whose lock file names the old command, and a past version, whose dvc.yaml names it, could not be rebuilt.
_RENAMED_COMMANDS = {"python -m tasks.materialise ": "python -m tasks.build_features.materialise "}
_SHARED_CONFIG = "[core]\n    analytics = false\n    check_update = false\n    remote = storage\n"


@dataclass(frozen=True, kw_only=True)
class Built:
    """A dataset: `version` is DVC's hash of the output folder, `git_revision` the workspace's commit that names it."""

    version: str
    git_revision: str


class Versions:
    """The dataset versions of every use case."""

    def __init__(self, *, settings: Settings) -> None:
        self._settings = settings
        self._root = settings.home / "workspaces"
        self._store = Lake(
            settings.s3_endpoint,
            settings.s3_access_key,
            settings.s3_secret_key,
            settings.versions_bucket,
            settings.home / "cache",
        )

    def workspace(self, use_case: str) -> Path:
        """Where a use case's datasets are built."""
        return self._root / use_case

    def output(self, use_case: str) -> Path:
        """The output folder of the last build, as it lies in the workspace: unverified, and there may be none yet."""
        return self.workspace(use_case) / "data" / use_case

    def repro(self, use_case: str, inputs: Mapping[str, bytes], local: Mapping[str, bytes]) -> Built:
        """Build what the inputs ask for and keep it in S3; the same inputs give the same version.

        Args:
            use_case: whose stage `features@<use case>` to run.
            inputs: path in the workspace -> content, for all that the result depends on. Committed with the result.
            local: the same for what only this machine knows (where input files lie); not committed.

        Raises:
            ValueError: the stage refused its inputs; nothing is committed, and trying again would give the same.
            CommandFailed: the stage failed; nothing is committed, and a rerun goes on from what it finished.
        """
        folder = self.workspace(use_case)
        folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(folder / "lock") as lock:
            self._prepare(folder, use_case)
            _write_all(folder, inputs)
            _write_all(folder, {f"local/{name}": content for name, content in local.items()})
            version = self._reproduce(folder, use_case, lock)
            self._push(folder, use_case, version)
            revision = self._commit(folder, [*inputs], f"{use_case} {version}")
            self._push_history(folder, use_case)
            return Built(version=version, git_revision=revision)

    def rebuild(self, use_case: str, git_revision: str, local: Mapping[str, bytes]) -> Built:
        """Build a past version again from nothing but what was committed then; the workspace is not touched.

        What S3 lacks of it is stored there again.
        """
        with tempfile.TemporaryDirectory(prefix=f"{use_case}-", dir=self._root) as made:
            folder = Path(made)
            self._git(folder, "clone", "--quiet", "--no-checkout", str(self.workspace(use_case)), ".")
            self._git(folder, "checkout", "--quiet", git_revision)
            self._configure(folder, use_case)
            (folder / "dvc.lock").unlink()  # it says what came out then; find out anew
            _write_all(folder, {f"local/{name}": content for name, content in local.items()})
            version = self._reproduce(folder, use_case)
            self._push(folder, use_case, version)
            return Built(version=version, git_revision=git_revision)

    def committed(self, use_case: str, git_revision: str, path: str) -> bytes:
        """A file of the workspace as it was at a revision."""
        return self._git(self.workspace(use_case), "show", f"{git_revision}:{path}").encode()

    def files(self, use_case: str, version: str) -> dict[str, Path]:
        """Every file of a version: path in the output folder -> verified file in the cache. Do not write to them.

        An object that is missing or damaged in the cache is fetched from S3.

        Raises:
            FileNotFoundError: there is no such version in S3 either.
            Corrupt: S3's copy is damaged, too.
        """
        listing = json.loads(self._object(use_case, version).read_bytes())
        return {entry["relpath"]: self._object(use_case, entry["md5"]) for entry in listing}

    def _object(self, use_case: str, md5: str) -> Path:
        path = self.workspace(use_case) / ".dvc" / "cache" / _address(md5)
        if not path.exists() or _md5(path.read_bytes()) != md5.removesuffix(".dir"):
            uri = self._store.uri(f"{use_case}/{_address(md5)}")
            content = self._store.read(uri)
            if _md5(content) != md5.removesuffix(".dir"):
                raise Corrupt(
                    f"{uri}: its bytes do not have the MD5 it is named by: it was changed in the store;"
                    " delete it there and rebuild the version (`make rebuild VERSION=...`)"
                )
            write_atomically(path, content)
        return path

    def _push(self, folder: Path, use_case: str, version: str) -> None:
        cache = folder / ".dvc" / "cache"
        listing = json.loads((cache / _address(version)).read_bytes())
        stored = {uri.rsplit("files/md5/", 1)[-1] for uri in self._store.list(f"{use_case}/files/md5/")}
        for md5 in [*(entry["md5"] for entry in listing), version]:  # the listing last: what it names is there
            if _address(md5).removeprefix("files/md5/") not in stored:
                content = (cache / _address(md5)).read_bytes()
                if _md5(content) != md5.removesuffix(".dir"):
                    raise Corrupt(
                        f"{cache / _address(md5)} was changed before it was stored; remove it and build again"
                    )
                self._store.put_named(f"{use_case}/{_address(md5)}", content, "application/octet-stream")

    def _reproduce(self, folder: Path, use_case: str, *kept_open: int) -> str:
        _rename_commands(folder)
        # Nobody else is in this workspace (see `repro`): what DVC's process lock names has died, though its pid may be
        # another's by now.
        (folder / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)
        command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", f"features@{use_case}"]
        refusal = folder / REFUSAL
        refusal.unlink(missing_ok=True)
        try:
            run(command, folder=folder, environment=self._environment(), kept_open=kept_open)
        except CommandFailed as failed:
            if refusal.exists():
                raise ValueError(refusal.read_text()) from failed
            raise
        stages = yaml.safe_load((folder / "dvc.lock").read_text())["stages"]
        [output] = stages[f"features@{use_case}"]["outs"]
        return str(output["md5"])

    def _commit(self, folder: Path, paths: list[str], message: str) -> str:
        (folder / ".git" / "index.lock").unlink(missing_ok=True)  # left by a run that was killed
        self._git(folder, "add", "--", ".gitignore", ".dvc/config", ".dvc/.gitignore", "dvc.lock", *paths)
        if self._git(folder, "status", "--porcelain", "--untracked-files=no"):
            self._git(folder, "commit", "--quiet", "--message", message)
        return self._git(folder, "rev-parse", "HEAD").strip()

    def _prepare(self, folder: Path, use_case: str) -> None:
        (folder / "local").mkdir(exist_ok=True)
        if not (folder / ".git" / "HEAD").exists():
            self._git(folder, "init", "--quiet", "--initial-branch", "main")
            self._pull_history(folder, use_case)
        _write_all(folder, {".gitignore": _IGNORED.encode()})
        self._configure(folder, use_case)

    def _push_history(self, folder: Path, use_case: str) -> None:
        bundle = folder / "local" / "history.bundle"
        self._git(folder, "bundle", "create", "--quiet", str(bundle), "main")
        self._store.put_named(f"{use_case}/history.bundle", bundle.read_bytes(), "application/octet-stream")

    def _pull_history(self, folder: Path, use_case: str) -> None:
        """A workspace that was lost, or never was on this machine: its commits are in S3."""
        uri = self._store.uri(f"{use_case}/history.bundle")
        if self._store.exists(uri):
            write_atomically(folder / "local" / "history.bundle", self._store.read(uri))
            self._git(folder, "pull", "--quiet", "local/history.bundle", "main")

    def _configure(self, folder: Path, use_case: str) -> None:
        s = self._settings
        remote = {
            "url": f"s3://{s.versions_bucket}/{use_case}",
            "endpointurl": s.s3_endpoint,
            "access_key_id": s.s3_access_key,
            "secret_access_key": s.s3_secret_key,
        }
        lines = "".join(f"    {name} = {value}\n" for name, value in remote.items())
        _write_all(
            folder, {".dvc/config": _SHARED_CONFIG.encode(), ".dvc/.gitignore": b"/config.local\n/tmp\n/cache\n"}
        )
        write_atomically(folder / ".dvc" / "config.local", f"['remote \"storage\"']\n{lines}".encode())  # mode 0600

    def _git(self, folder: Path, *arguments: str) -> str:
        return run(["git", *arguments], folder=folder, environment=self._environment())

    def _environment(self) -> dict[str, str]:
        """No secret, and nothing of the user's: neither their git and DVC settings nor ours change what comes out."""
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        own = self._root / ".dvc-state"
        who = {f"GIT_{role}_{part}": "windsock" for role in ("AUTHOR", "COMMITTER") for part in ("NAME", "EMAIL")}
        return (
            inherited
            | who
            | {
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
                "PYTHONPATH": str(REPOSITORY),
                "SHELL": "/bin/sh",
                "GIT_CONFIG_GLOBAL": os.devnull,
                "GIT_CONFIG_NOSYSTEM": "1",
                "DVC_NO_ANALYTICS": "1",
                "DVC_SITE_CACHE_DIR": str(own / "cache"),
                "DVC_GLOBAL_CONFIG_DIR": str(own),
                "DVC_SYSTEM_CONFIG_DIR": str(own),
            }
        )


def _address(md5: str) -> str:
    return f"files/md5/{md5[:2]}/{md5[2:]}"


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _rename_commands(folder: Path) -> None:
    """Have the stages, and the lock file of what they made, name commands as they are called today."""
    texts = {path.name: path.read_text() for path in folder.glob("dvc.*")}
    for before, now in _RENAMED_COMMANDS.items():
        texts = {name: text.replace(before, now) for name, text in texts.items()}
    _write_all(folder, {name: text.encode() for name, text in texts.items()})


def _write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            write_atomically(path, content)
