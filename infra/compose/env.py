"""Writes .env from .env.example, with fresh secrets: `python -m infra.compose.env`. What is set there stays."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

from adapters.files import write_atomically
from infra.private import make_secret, read_code_sha
from infra.settings import parse_assignments
from pipeline.settings import REPOSITORY

SECRET, CODE_SHA = "SECRET_", "WINDSOCK_CODE_SHA"
PROJECT = "windsock"  # as docker-compose.yaml says


def fill_template(template: str, known: Mapping[str, str], sha: str) -> str:
    """The template with what is known, a new secret where one is missing, and the commit of the code.

    What is known and not in the template (COMPOSE_PROFILES, say) comes last.
    """
    wanted = parse_assignments(template)
    values = {name: known.get(name, value) or _made(name) for name, value in wanted.items()} | {CODE_SHA: sha}
    named = [(line, line.partition("=")[0]) for line in template.splitlines()]
    lines = [
        *(f"{name}={values[name]}" if name in wanted else line for line, name in named),
        *(f"{name}={value}" for name, value in known.items() if name not in wanted),
    ]
    return "".join(f"{line}\n" for line in lines)


def _made(name: str) -> str:
    return make_secret(name.removeprefix(SECRET).lower()) if name.startswith(SECRET) else ""


def find_orphaned_volume() -> str | None:
    """The volume of a cluster that an earlier .env made, where the engine has one: no fresh secret opens it."""
    if shutil.which("docker") is None:
        return None
    wanted = f"{os.environ.get('COMPOSE_PROJECT_NAME', PROJECT)}_postgres"
    listed = subprocess.run(
        ["docker", "volume", "ls", "--quiet", "--filter", f"name=^{wanted}$"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    return wanted if wanted in listed.stdout.split() else None  # an engine that does not answer has nothing to say


def main() -> int:
    """Write it, readable by its owner only, and say where. 1 where fresh secrets would shut out what is stored."""
    path = REPOSITORY / ".env"
    if not path.exists() and (volume := find_orphaned_volume()):
        print(
            f"there is no .env here, and the volume {volume} is of a stack that has one: put that file back, or start "
            f"another stack beside it (COMPOSE_PROJECT_NAME=<name>, and other ports in .env), or begin anew by "
            f"`docker volume rm {volume}` and the others of its name, once its containers are gone",
            file=sys.stderr,
        )
        return 1
    known = parse_assignments(path.read_text()) if path.exists() else {}
    write_atomically(path, fill_template((REPOSITORY / ".env.example").read_text(), known, read_code_sha()).encode())
    print(f"{path.name} is {'up to date' if known else 'written, with fresh secrets'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
