"""The model store: archives of bundles, and `deployed.json`, from which `serving/launch.py` starts the server again."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.files import hold_lock, write_atomically

_HANDLER = "serving.handler:handle"  # of the server's own checkout: an archive holds no code
_DIGEST_IN_NAME = 12  # characters of the SHA-256
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip knows: the same bundle always makes the same bytes

Entry = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Archive:
    """A bundle as the server takes it."""

    use_case: str
    version: str
    path: Path
    sha256: str

    def verify(self) -> None:
        """ValueError unless the file is there, and is the one that was made."""
        if not self.path.is_file():
            raise ValueError(f"{self.path} is not there: make the archive again")
        if (found := hashlib.sha256(self.path.read_bytes()).hexdigest()) != self.sha256:
            raise ValueError(f"{self.path} has the SHA-256 {found}, expected {self.sha256}: it was changed")


@dataclass(frozen=True)
class ModelStore:
    """A folder that the server reads."""

    folder: Path

    def archive(
        self, bundle: Path, *, use_case: str, version: str, bundle_sha256: str, options: Mapping[str, Any]
    ) -> Archive:
        """A bundle folder and its options as a .mar in the store; the same ones make the same file.

        Args:
            bundle: the folder.
            use_case: becomes the model's name.
            version: of the registered model.
            bundle_sha256: of the bundle; the server checks it again when it loads.
            options: the other fields of `serving.answers.Options`.
        """
        content = _pack(bundle, {**options, "use_case": use_case, "version": version, "bundle_sha256": bundle_sha256})
        sha256 = hashlib.sha256(content).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{use_case}-{version}-{sha256[:_DIGEST_IN_NAME]}.mar"
        write_atomically(path, content, mode=0o644)
        return Archive(use_case=use_case, version=version, path=path, sha256=sha256)

    def entries(self) -> list[Entry]:
        """What is deployed."""
        path = self.folder / "deployed.json"
        return list(json.loads(path.read_text())["versions"]) if path.exists() else []

    def entry(self, use_case: str, version: str) -> Entry | None:
        """A version, if it is deployed."""
        return next((entry for entry in self.entries() if _is(entry, use_case, version)), None)

    def remember(self, entry: Entry) -> None:
        """A version is deployed; the first of a use case is its default."""
        with self._changing() as entries:
            others = [known for known in entries if known["use_case"] == entry["use_case"] and known.get("default")]
            was = [known for known in entries if _is(known, entry["use_case"], entry["version"])]
            is_default = was[0]["default"] if was else not others
            entries[:] = [known for known in entries if known not in was]
            entries.append({**entry, "default": is_default})

    def make_default(self, use_case: str, version: str) -> None:
        """This version answers where none is named."""
        with self._changing() as entries:
            for entry in entries:
                if entry["use_case"] == use_case:
                    entry["default"] = entry["version"] == version

    def forget(self, use_case: str, version: str) -> None:
        """A version is deployed no more, and its archive goes."""
        with self._changing() as entries:
            gone = [entry for entry in entries if _is(entry, use_case, version)]
            entries[:] = [entry for entry in entries if not _is(entry, use_case, version)]
            _keep_one_default(entries, use_case)
        for entry in gone:
            (self.folder / entry["file"]).unlink(missing_ok=True)
        self.sweep(use_case, version)

    def sweep(self, use_case: str, version: str) -> None:
        """Remove the archives of a version that nothing refers to: of attempts that failed, died, or were retired."""
        with self._changing() as entries:
            kept = {entry["file"] for entry in entries}
            for path in self.folder.glob(f"{use_case}-{version}-{'[0-9a-f]' * _DIGEST_IN_NAME}.mar"):
                if path.name not in kept:
                    path.unlink(missing_ok=True)

    @contextmanager
    def _changing(self) -> Iterator[list[Entry]]:
        """What is deployed, to be changed in place; one process at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(self.folder / "deployed.lock"):
            entries = self.entries()
            yield entries
            text = json.dumps({"versions": entries}, indent=1)
            write_atomically(self.folder / "deployed.json", text.encode(), mode=0o644)


def _pack(bundle: Path, options: Mapping[str, Any]) -> bytes:
    manifest = {
        "createdOn": "1/1/1980",
        "runtime": "python",
        "model": {"modelName": options["use_case"], "modelVersion": options["version"], "handler": _HANDLER},
        "archiverVersion": "0.12.0",
    }
    files = {
        "MAR-INF/MANIFEST.json": json.dumps(manifest, indent=1).encode(),
        "options.json": json.dumps(options, indent=1, sort_keys=True, allow_nan=False).encode(),
        **{f"bundle/{path.relative_to(bundle)}": path.read_bytes() for path in bundle.rglob("*") if path.is_file()},
    }
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), files[name])
    return sink.getvalue()


def _is(entry: Entry, use_case: str, version: str) -> bool:
    return bool(entry["use_case"] == use_case and entry["version"] == version)


def _keep_one_default(entries: list[Entry], use_case: str) -> None:
    left = [entry for entry in entries if entry["use_case"] == use_case]
    if left and not any(entry["default"] for entry in left):
        left[-1]["default"] = True
