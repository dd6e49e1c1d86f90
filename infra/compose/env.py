"""Writes .env from .env.example, with fresh secrets: `python -m infra.compose.env`. What is set there stays."""

import sys
from collections.abc import Mapping

from infra.private import code_sha, new_secret, write_private
from infra.settings import assignments
from pipeline.settings import REPOSITORY

SECRET, CODE_SHA = "SECRET_", "WINDSOCK_CODE_SHA"


def fill(template: str, known: Mapping[str, str], sha: str) -> str:
    """The template with what is known, a new secret where one is missing, and the commit of the code.

    What is known and not in the template (COMPOSE_PROFILES, say) comes last.
    """
    wanted = assignments(template)
    values = {name: known.get(name, value) or _made(name) for name, value in wanted.items()} | {CODE_SHA: sha}
    named = [(line, line.partition("=")[0]) for line in template.splitlines()]
    lines = [f"{name}={values[name]}" if name in wanted else line for line, name in named]
    lines += [f"{name}={value}" for name, value in known.items() if name not in wanted]
    return "".join(f"{line}\n" for line in lines)


def _made(name: str) -> str:
    return new_secret(name.removeprefix(SECRET).lower()) if name.startswith(SECRET) else ""


def main() -> int:
    """Write it, readable by its owner only, and say where."""
    path = REPOSITORY / ".env"
    known = assignments(path.read_text()) if path.exists() else {}
    write_private(path, fill((REPOSITORY / ".env.example").read_text(), known, code_sha()))
    print(f"{path.name} is {'up to date' if known else 'written, with fresh secrets'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
