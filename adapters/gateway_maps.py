"""The gateway's maps: the files it reads at start, and the same entries changed in the running process."""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

from adapters.files import hold_lock, write_atomically

NAMES = ("keys", "versions", "weights", "fallback", "openapi")
SECONDS = 10


def read_map(path: Path) -> dict[str, str]:
    """The entries of a map file; none when there is no file yet."""
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = (line.split(None, 1) for line in lines if line.strip() and not line.startswith("#"))
    return {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}


def write_map(path: Path, entries: dict[str, str]) -> None:
    """Replace a map file at once. Keys are nobody else's business; the rest is read by whoever runs the gateway."""
    write_atomically(path, _format_entries(entries).encode(), mode=0o600 if path.name == "keys.map" else 0o644)


def _format_entries(entries: dict[str, str]) -> str:
    return "".join(f"{key} {value}\n" for key, value in entries.items())


def create_maps(folder: Path) -> None:
    """Every map, empty where it is not there yet: HAProxy does not start without its files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        if not (folder / f"{name}.map").exists():
            write_map(folder / f"{name}.map", {})


def change_map_file(folder: Path, name: str, edit: Callable[[dict[str, str]], None]) -> dict[str, str]:
    """Edit one map file, one writer at a time. Returns its new entries."""
    with hold_lock(folder / ".lock"):
        return _edit(folder, name, edit)


def _edit(folder: Path, name: str, edit: Callable[[dict[str, str]], None]) -> dict[str, str]:
    path = folder / f"{name}.map"
    entries = read_map(path)
    edit(entries)
    if wrong := [key for key, value in entries.items() if not re.fullmatch(r"\S+ \S[^\r\n]*", f"{key} {value}")]:
        raise ValueError(f"{path.name}: expected a key without blanks and a value on one line; got {wrong[0]!r}")
    write_map(path, entries)
    return entries


def _connect(address: str) -> socket.socket:
    if not address.startswith("unix@"):
        host, _, port = address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=SECONDS)
    path = Path(address.removeprefix("unix@"))
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(SECONDS)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{path.name}")  # a socket's path has room for 107 bytes
    except OSError:
        connection.close()
        raise
    finally:
        os.close(folder)
    return connection


class Admin:
    """HAProxy's admin socket, at "host:port" or "unix@/path"."""

    def __init__(self, address: str) -> None:
        self.address = address

    def send_command(self, command: str) -> str:
        """What HAProxy answers to one command.

        Raises:
            ConnectionError: when nobody answers there.
        """
        try:
            with _connect(self.address) as connection:
                connection.sendall(f"{command}\n".encode())
                received = b"".join(iter(lambda: connection.recv(65536), b""))
        except OSError as error:
            raise ConnectionError(f"the gateway's admin socket at {self.address} does not answer: {error}") from error
        return received.decode(errors="replace")

    def entries(self, identity: str) -> dict[str, str]:
        """The entries of a map as the running process has them."""
        lines = (line.split(" ", 2) for line in self.send_command(f"show map {identity}").splitlines())
        return {line[1]: line[2] for line in lines if len(line) == 3 and line[0].startswith("0x")}

    def identity(self, name: str) -> str:
        """What HAProxy calls a map: by its number, since its folder may have another path where the gateway runs."""
        pattern = rf"^(\d+) \((?:.*/)?{re.escape(name)}\.map\)"
        if (found := re.search(pattern, self.send_command("show map"), re.MULTILINE)) is None:
            raise ValueError(f"the gateway at {self.address} has no map {name}.map: is it windsock's HAProxy?")
        return f"#{found[1]}"

    def replace(self, name: str, entries: dict[str, str]) -> None:
        """Give the running process these entries, all at once, and make sure that it has them."""
        identity = self.identity(name)
        answer = self.send_command(f"prepare map {identity}")
        if (version := re.search(r"New version created: (\d+)", answer)) is None:
            raise ValueError(f"the gateway refused to change {name}.map: {answer.strip()}")
        if entries:
            answer = self.send_command(f"add map @{version[1]} {identity} <<\n{_format_entries(entries)}")
        answer += self.send_command(f"commit map @{version[1]} {identity}")
        if (held := self.entries(identity)) != entries:
            raise ValueError(
                f"the gateway did not take the change of {name}.map ({answer.strip()}): "
                f"it has {len(held)} entries, expected {len(entries)}; a restart reads the file"
            )


def change_map(folder: Path, admin: Admin, name: str, edit: Callable[[dict[str, str]], None]) -> None:
    """Change a map: the file first, so that a restart knows it, then the running process, one writer at a time.

    Raises:
        ConnectionError: when the gateway does not answer; the file is changed and holds from its next start.
    """
    with hold_lock(folder / ".lock"):
        entries = _edit(folder, name, edit)
        try:
            admin.replace(name, entries)
        except ConnectionError as error:
            raise ConnectionError(f"{error}. {name}.map is written: it holds once the gateway starts again") from error
