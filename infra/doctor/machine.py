"""The machine: room, memory, ports, an accelerator."""

import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from infra.doctor.finding import Finding
from infra.local.stack import FREE_SPACE_SHARE

DISK_BYTES = 5_000_000_000
MEMORY_BYTES = 6_000_000_000  # the stack at rest takes 3, one training 2
_DEVICES = ("nvidiactl", "nvidia0")


def check_disk(folder: Path) -> Finding:
    """Whether a folder's disk has room for images, data and logs."""
    disk = shutil.disk_usage(folder)
    needed = DISK_BYTES + FREE_SPACE_SHARE * disk.total
    remedy = f"make room for {needed / 1e9:.1f} GB: `docker system df`, `make clean`, or another disk"
    return Finding(
        check="disk",
        observation=f"{disk.free / 1e9:.1f} GB free in {folder}",
        remedy=remedy if disk.free < needed else "",
    )


def check_memory(available_bytes: int) -> Finding:
    """Whether there is memory for the stack and a training."""
    remedy = f"give it {MEMORY_BYTES / 1e9:.0f} GB (TASKS_MEMORY in .env; the engine's own limit): tasks die of less"
    return Finding(
        check="memory",
        observation=f"{available_bytes / 1e9:.1f} GB",
        remedy=remedy if available_bytes < MEMORY_BYTES else "",
    )


def read_memory_limit(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may see used: the machine's, or its container's limit."""
    lines = (root / "proc/meminfo").read_text().splitlines()
    machine = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))
    limits = [root / "sys/fs/cgroup/memory.max", root / "sys/fs/cgroup/memory/memory.limit_in_bytes"]
    texts = [path.read_text().strip() for path in limits if path.exists()]
    return min([machine, *(int(limit) for limit in texts if limit.isdecimal())])


def check_ports(wanted: Mapping[str, int]) -> Iterator[Finding]:
    """Whether the ports that a stack is about to take are free."""
    for name, port in wanted.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                yield Finding(
                    check="port",
                    observation=f"{port} ({name}): {error.strerror}",
                    remedy=f"end who has it (`ss -ltnp sport = :{port}`), or set {name} in .env",
                )
            else:
                yield Finding(check="port", observation=f"{port} ({name}) is free")


def check_gpu(devices: Path, *, usable: bool) -> Finding:
    """Whether a GPU that is there can be used.

    Args:
        devices: the folder of devices.
        usable: what torch says.
    """
    if usable:
        return Finding(check="GPU", observation="torch uses it")
    if not any((devices / name).exists() for name in _DEVICES):
        return Finding(check="GPU", observation="none: trainings run on the processor")
    return Finding(
        check="GPU",
        observation="a device is here, and torch cannot use it",
        remedy="install torch's CUDA build (no CPU wheel in PIP_FIND_LINKS, no CPU index) and a driver that it"
        " supports",
    )
