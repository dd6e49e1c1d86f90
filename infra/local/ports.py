"""Ports on loopback: the usual ones where free, free ones otherwise, the same ones again after a restart."""

import json
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path

# SeaweedFS has five more listeners behind its S3 port.
USUAL_PORTS: Mapping[str, int] = {
    "postgres": 15432,
    "s3": 8333,
    "s3_grpc": 18333,
    "s3_master": 9333,
    "s3_master_grpc": 19333,
    "s3_volume": 9340,
    "s3_volume_grpc": 19340,
    "s3_filer": 8888,
    "s3_filer_grpc": 18888,
    "s3_admin": 23646,
    "s3_admin_grpc": 33646,
    "mlflow": 5000,
    "airflow": 8080,
    "airflow_logs": 8793,
    "airflow_triggerer_logs": 8794,
    "inference": 8085,
    "management": 8086,
    "inference_metrics": 8087,
    "gateway": 8088,
    "gateway_admin": 8089,
    "gateway_metrics": 8090,
}


def find_socket_files(port: int) -> list[Path]:
    """The files that SeaweedFS makes beside a port it listens on, and leaves behind."""
    return list(Path("/tmp").glob(f"seaweedfs-*-{port}.sock"))  # noqa: S108  # its choice, not ours


def is_port_free(port: int) -> bool:
    """Whether this port can be bound on loopback now, and no other user's socket file stands in the way."""
    if os.geteuid() != 0 and any(left.lstat().st_uid != os.geteuid() for left in find_socket_files(port)):
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def find_free_port(taken: set[int]) -> int:
    """A port nobody holds, below the range the system hands out to clients, which could be taken a moment later.

    Two stacks that are started at one moment do not see each other's choice: WINDSOCK_PORTS ("20000-23000") keeps them
    apart.
    """
    first, last = (int(bound) for bound in os.environ.get("WINDSOCK_PORTS", "20000-32000").split("-"))
    for _ in range(1000):
        port = first + secrets.randbelow(last - first)
        if port not in taken and is_port_free(port):
            return port
    raise ValueError(f"no free port on 127.0.0.1 between {first} and {last}: stop what holds them")


def choose_ports(remembered: Mapping[str, int], *, usual: bool) -> dict[str, int]:
    """A free port per listener: the remembered one, else the usual one (if wanted), else any."""
    chosen: dict[str, int] = {}
    for name, port in USUAL_PORTS.items():
        wishes = [remembered[name]] if name in remembered else []
        wishes += [port] if usual else []
        taken = set(chosen.values())
        chosen[name] = next((p for p in wishes if p not in taken and is_port_free(p)), 0) or find_free_port(taken)
    return chosen


def remember_ports(path: Path, *, usual: bool) -> dict[str, int]:
    """The ports of the stack whose memory is this file; written back when they changed."""
    remembered: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    chosen = choose_ports(remembered, usual=usual)
    if chosen != remembered:
        path.write_text(json.dumps(chosen, indent=1))
    return chosen
