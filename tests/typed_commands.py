"""Checks a command as a page shows it by the program that would run it, as far as that does no work.

`make` is asked what it would do, and those commands are checked in their turn; our own programs, Airflow and MLflow
parse the very arguments. Everything returns what is wrong, a sentence each; nothing is wrong: an empty list.
"""

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import io
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from unittest import mock

import yaml

from infra.settings import parse_assignments
from pipeline.settings import REPOSITORY

MAKEFILE = (REPOSITORY / "Makefile").read_text()
COMPOSE = yaml.safe_load((REPOSITORY / "docker-compose.yaml").read_text())
SCRAPED = (REPOSITORY / "infra/prometheus/prometheus.yaml").read_text()
ENV = parse_assignments((REPOSITORY / ".env.example").read_text())
OURS = {path.name for path in REPOSITORY.iterdir() if (path / "__init__.py").exists()}
PLACEHOLDERS = {
    "<use case>": "flights",
    "<client>": "someone",
    "<hash>": "0" * 32,
    "<your registry>": "registry",
    "<folder>": "/tmp",  # noqa: S108  # a name only
    "<available_at>": "known_at",
    "<table>": "weather",
}
# Compose is not installed wherever tests run. `make compose-up` and `compose-demo` type what is here, too, and
# tests/infra/test_compose.py runs those two; the rest is Compose's reference.
COMPOSE_OPTIONS = {
    "up": {"--build", "--detach", "-d", "--wait", "--force-recreate"},
    "down": {"--volumes"},
    "ps": set[str](),
    "logs": {"--follow"},
    "run": {"--rm"},
    "exec": set[str](),
    "cp": set[str](),
}
_ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=")


class _ParsedError(Exception):
    """The arguments were understood; what they ask for is not done."""


def fill_placeholders(text: str) -> str:
    """With a name of the shipped use case where a reader is to put in their own."""
    for placeholder, value in PLACEHOLDERS.items():
        text = text.replace(placeholder, value)
    return text


def split_commands(text: str) -> list[list[str]]:
    """The words of each command of a shell text; a string or a backslash may carry one over several lines."""
    commands, pending = list[list[str]](), ""
    for line in fill_placeholders(text).splitlines():
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        pending += line + "\n"
        with contextlib.suppress(ValueError):  # a string is open still
            commands.append(shlex.split(pending, comments=True))
            pending = ""
    return [words for words in [*commands, *([["unclosed", pending]] if pending else [])] if words]


def check_command(words: list[str], *, installed: bool = False) -> list[str]:
    """What is wrong with a command; `installed`: where our Python is the one that is found (a container, `run --`)."""
    named = [word.partition("=")[0] for word in words if _ASSIGNMENT.match(word)]
    problems = [f"{name}: nothing here reads it" for name in named if words[0] != "make" and not _is_read(name)]
    while words and _ASSIGNMENT.match(words[0]):
        words = words[1:]
    words = words[: words.index("<")] if "<" in words else words  # a file of the reader's
    if not words:
        return problems
    if words[0] in {"python", "pip", "airflow", "mlflow"} and not installed:
        return [f"{words[0]}: expected .venv/bin/{words[0]}, which a reader has"]
    check = CHECKS.get(words[0])
    unknown = f"{' '.join(words)}: no test runs it, and nothing says how it is checked"
    return problems + (check(words) if check else [unknown])


@cache
def _is_read(name: str) -> bool:
    """Whether any of our files but the pages has the name of this variable, or Airflow's section before it."""
    whole = f"(^|[^A-Z0-9_]|__){name}([^A-Z0-9_]|$)"
    command = ["git", "grep", "--quiet", "--extended-regexp", whole, "--", ":!*.md", ":!tests/test_documents.py"]
    return subprocess.run(command, cwd=REPOSITORY, check=False).returncode == 0


def check_make(words: list[str]) -> list[str]:
    """By what `make` would do; a variable that the Makefile does not use would change nothing."""
    settings = [word.partition("=")[0] for word in words[1:] if "=" in word]
    problems = [f"make: no {name} in the Makefile" for name in settings if f"$({name})" not in MAKEFILE]
    return problems + list(_check_made(tuple(words)))


@cache
def _check_made(words: tuple[str, ...]) -> tuple[str, ...]:
    command = ["make", "--dry-run", "--old-file=.venv/.complete", *words[1:]]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip(),)
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return tuple(
        problem
        for line in lines
        if re.match(r"([A-Z_]+=\S* )*(\.venv/bin/python -m|docker compose) ", line)
        for problem in check_command(shlex.split(line))
    )


def check_python(words: list[str]) -> list[str]:
    """A module that exists; of our own modules the arguments, too."""
    match words:
        case [_, "-m", "infra.local", "run", "--", *command]:
            return check_command(command, installed=True)
        case [_, "-m", module, *arguments]:
            return _check_module(module, arguments)
    return [f"{' '.join(words)}: expected python -m <module>"]


def _check_module(module: str, arguments: list[str]) -> list[str]:
    top = module.partition(".")[0]
    if top not in OURS:
        return [] if importlib.util.find_spec(top) else [f"{module}: there is no such module"]
    path = REPOSITORY.joinpath(*module.split("."))
    files = [found for found in (path.with_suffix(".py"), path / "__main__.py") if found.exists()]
    if not files:
        return [f"{module}: there is no such module"]
    text = files[0].read_text()
    if "ArgumentParser(" not in text:
        return [f"{module}: takes no arguments"] if arguments else []
    if top == "benchmarks":  # what they load is not all in the environment of the tests
        return [f"{module}: no {word}" for word in arguments if word.startswith("-") and f'"{word}"' not in text]
    return _parse(f"{module}.__main__" if files[0].name == "__main__.py" else module, arguments)


def _parse(module: str, arguments: list[str]) -> list[str]:
    """What its own parser says to these arguments."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, words: list[str] | None = None) -> argparse.Namespace:
        parse(parser, words)
        raise _ParsedError

    main, said = importlib.import_module(module).main, io.StringIO()
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", stop),
        mock.patch.object(sys, "argv", [module, *arguments]),
        contextlib.redirect_stderr(said),
        contextlib.suppress(_ParsedError),
    ):
        try:
            main(*([arguments] if inspect.signature(main).parameters else []))
        except SystemExit:
            return [said.getvalue().strip().splitlines()[-1]]
    return []


def check_compose(words: list[str]) -> list[str]:
    """Verb, options, profile and service; what runs inside the container is checked as any command."""
    if words[1:2] != ["compose"]:
        return [f"{' '.join(words)}: expected docker compose"]
    rest, profiles = words[2:], {"*", *(name for s in COMPOSE["services"].values() for name in s.get("profiles", ()))}
    problems = []
    while rest[:1] == ["--profile"]:
        problems += [] if rest[1] in profiles else [f"docker compose: no profile {rest[1]}"]
        rest = rest[2:]
    if not rest or rest[0] not in COMPOSE_OPTIONS:
        return [f"{' '.join(words)}: not a verb of Compose that is known here"]
    verb, *rest = rest
    while rest and rest[0].startswith("-"):
        problems += [] if rest[0] in COMPOSE_OPTIONS[verb] else [f"docker compose {verb}: no {rest[0]}"]
        rest = rest[1:]
    services = [word.partition(":")[0] for word in rest if ":" in word] if verb == "cp" else rest[:1]
    problems += [f"docker compose {verb}: no service {name}" for name in services if name not in COMPOSE["services"]]
    inside = rest[1:] if verb in {"run", "exec"} else []
    return problems + (check_command(inside, installed=True) if inside else [])


def check_shell(words: list[str]) -> list[str]:
    """`sh -c <text>`."""
    if words[1:2] != ["-c"] or len(words) != 3:
        return [f"{' '.join(words)}: expected sh -c <text>"]
    missing = [name for name in re.findall(r"\$\{?([A-Z_]+)", words[2]) if not _is_read(name)]
    problems = [f"{name}: nothing here reads it" for name in missing]
    return problems + [p for inner in split_commands(words[2]) for p in check_command(inner, installed=True)]


_PARSED_BY = {
    "airflow": "from airflow.cli.cli_parser import get_parser; import sys; get_parser().parse_args(sys.argv[1:])",
    "mlflow": """if True:
        import sys, click
        from mlflow.cli import cli
        context, command, words = click.Context(cli), cli, sys.argv[1:]
        while isinstance(command, click.Group):
            _, command, words = command.resolve_command(context, words)
        command.make_context(command.name, words, parent=context)""",
}


@cache
def _ask_parser(program: str, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """What the parser of a program that we depend on says, in a process and a home of its own."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", _PARSED_BY[program], *arguments],
            cwd=folder,
            env={"AIRFLOW_HOME": folder, "HOME": folder, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
        )
    return (f"{program}: {done.stderr.strip().splitlines()[-1]}",) if done.returncode else ()


def check_parsed(words: list[str]) -> list[str]:
    """Airflow's and MLflow's own parsers; what a shell would put in first is put in."""
    return list(_ask_parser(words[0], tuple(_expand(word) for word in words[1:])))


def _expand(word: str) -> str:
    if not re.match(r"\$\(date ", word):
        return word
    command = ["bash", "-euc", f'printf %s "{word}"']
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def check_find(words: list[str]) -> list[str]:
    """Run in an empty folder, which says whether the expression is one."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["find", folder, *words[2:]], capture_output=True, text=True, check=False)
    return [done.stderr.strip()] if done.returncode else []


def check_curl(words: list[str]) -> list[str]:
    """One that the page's own test does not run asks what Prometheus asks, too."""
    [address] = [word for word in words[1:] if not word.startswith("-")]
    port, _, path = address.partition("//")[2 if "//" in address else 0].partition(":")[2].partition("/")
    return [] if path == "metrics" and f":{port}" in SCRAPED else [f"{address}: nobody is asked there"]


def check_uv(words: list[str]) -> list[str]:
    """What is installed is what a verb of the Makefile installs, too."""
    extras = [word for word in words if word.startswith(".[")]
    return (
        [] if extras and all(f"'{word}'" in MAKEFILE for word in extras) else [f"{' '.join(words)}: no verb does this"]
    )


def check_helm(words: list[str]) -> list[str]:
    """Files that exist and values that our charts read; tests/infra/test_helm.py renders them."""
    problems = [f"helm: no {word}" for word in words if word.startswith("infra/") and not (REPOSITORY / word).exists()]
    texts = [path.read_text() for path in (REPOSITORY / "infra/helm").rglob("*.yaml")]
    named = [value.partition("=")[0] for option, value in pairwise(words) if option == "--set"]
    return problems + [f"helm: no value {name}" for name in named if not any(name in text for text in texts)]


def leave_to_the_machine(_: list[str]) -> list[str]:
    """The machine's own programs: which packages it has is not ours to check."""
    return []


CHECKS: dict[str, Callable[[list[str]], list[str]]] = {
    "make": check_make,
    ".venv/bin/python": check_python,
    "python": check_python,
    "docker": check_compose,
    "sh": check_shell,
    "airflow": check_parsed,
    "mlflow": check_parsed,
    "find": check_find,
    "curl": check_curl,
    ".venv/bin/uv": check_uv,
    "helm": check_helm,
    "apt-get": leave_to_the_machine,
    "psql": leave_to_the_machine,
}


def list_profiles() -> Iterator[str]:
    """The profiles of the compose file."""
    for service in COMPOSE["services"].values():
        yield from service.get("profiles", ())


def check_setting(name: str, value: str) -> list[str]:
    """A line of `.env`."""
    if name not in ENV:
        return [f"{name}: not in .env.example"]
    unknown = set(filter(None, value.split(","))) - set(list_profiles()) if name == "COMPOSE_PROFILES" else set()
    return [f"COMPOSE_PROFILES: no profile {profile}" for profile in sorted(unknown)]
