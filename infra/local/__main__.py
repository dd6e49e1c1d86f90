"""`python -m infra.local up|status|stop|clean|env|key|revoke|publish|run|sql`: the embedded stack by commands."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from psycopg2.extensions import parse_dsn

from adapters.gateway import Gateway
from infra.local import airflow
from infra.local.home import inherited_environment
from infra.local.plan import GROUPS
from infra.local.postgres import find_postgres_programs
from infra.local.stack import PartStatus, Stack
from infra.local.stream import follower_dsn, source_admin_dsn
from pipeline.settings import DATABASES, REPOSITORY, find_params

_VERBS = ("up", "status", "stop", "clean", "env", "key", "revoke", "publish", "run", "sql")


def default_home() -> Path:
    """The state folder: WINDSOCK_HOME, else .windsock in the checkout."""
    return Path(os.environ.get("WINDSOCK_HOME") or REPOSITORY / ".windsock")


def format_status(rows: list[PartStatus]) -> str:
    """The parts, one a line."""
    lines = [
        ("part", "pid", "port", "state", "healthy", "restarts", "address"),
        *(
            (
                r.part,
                str(r.pid or "-"),
                str(r.port or "-"),
                r.state,
                "yes" if r.healthy else "NO",
                str(r.restarts),
                r.address,
            )
            for r in rows
        ),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _print_event(event: dict[str, Any]) -> None:
    if event["state"] in {"up", "done", "failed", "restarting", "left out"}:
        why = f": {event['problem']}" if event["state"] == "left out" else ""
        print(f"{event['seconds']:6.1f} s  {event['name']}: {event['state']}{why}", flush=True)


def _addresses(stack: Stack) -> str:
    environment = stack.environment()
    user, password = environment["AIRFLOW_ADMIN_USER"], environment["AIRFLOW_ADMIN_PASSWORD"]
    lines = [f"MLflow   {environment['MLFLOW_TRACKING_URI']}", f"settings {stack.folder / 'env'}"]
    if "airflow" in stack.groups():
        lines.insert(0, f"Airflow  {environment['AIRFLOW_URL']}   login {user} / {password}")
    return "\n".join(lines)


def start_stack(stack: Stack, groups: tuple[str, ...]) -> int:
    """Start what does not run yet."""
    try:
        started = stack.start(groups, usual_ports=True, tell=_print_event)
    except KeyboardInterrupt:
        stack.stop()
        print("stopped", file=sys.stderr)
        return 130
    print("the stack is up" if started else "the stack is already running", _addresses(stack), sep="\n")
    return 0


def print_status(stack: Stack) -> int:
    """The table of parts; 1 when one of them is not healthy."""
    rows = stack.status()
    print(format_status(rows) if rows else f"no stack is running in {stack.folder}")
    for name, part in stack.state()["parts"].items() if rows else ():
        if part["state"] == "left out":
            print(f"{name} is left out: {part['problem']}")
    return 0 if rows and all(row.healthy for row in rows) else 1


def run_command(stack: Stack, command: list[str]) -> int:
    """Become a command that has the stack's settings in its environment."""
    if not command:
        raise ValueError("expected a command: python -m infra.local run -- <command>")
    _require_running(stack)
    environment = {**inherited_environment(), **stack.environment(), **airflow.airflow_settings(stack.home())}
    os.execvpe(command[0], command, environment)  # noqa: S606  # the user's own command


def open_database(stack: Stack, database: str, options: list[str]) -> None:
    """Become psql at a database of the stack, as its owner; what is piped in is run up to its first error."""
    _require_running(stack)
    variables = {name.removeprefix("WINDSOCK_").removesuffix("_DSN").lower(): name for name in DATABASES}
    if database not in variables:
        raise ValueError(f"expected a database, one of {', '.join(sorted(variables))}; got {database!r}")
    parts = parse_dsn(stack.environment()[variables[database]])
    settings = {f"PG{'DATABASE' if name == 'dbname' else name.upper()}": value for name, value in parts.items()}
    psql, strictly = str(find_postgres_programs() / "psql"), [] if sys.stdin.isatty() else ["--set=ON_ERROR_STOP=1"]
    os.execve(psql, ["psql", *strictly, *options], {**inherited_environment(), **settings})  # noqa: S606  # the user's own


def _require_running(stack: Stack) -> None:
    if not stack.running:
        raise ValueError(f"no stack is running in {stack.folder}: `make up` starts it")


def issue_key(stack: Stack, client: str) -> None:
    """A new key for a client of the gateway, shown this once; the client's older ones hold no longer."""
    print(_connect_gateway(stack).add_client(client))


def revoke_keys(stack: Stack, client: str) -> None:
    """No key of this client holds any longer."""
    _connect_gateway(stack).remove_client(client)
    print(f"no key of {client} holds any longer")


def _connect_gateway(stack: Stack) -> Gateway:
    known = stack.environment()
    if "WINDSOCK_GATEWAY_URL" not in known:
        raise ValueError("this stack has no gateway: `make status` says why")
    return Gateway(
        known["WINDSOCK_GATEWAY_URL"],
        known["WINDSOCK_GATEWAY_ADMIN"],
        Path(known["WINDSOCK_GATEWAY_MAPS"]),
        known["WINDSOCK_GATEWAY_KEY"],
    )


def publish_source(stack: Stack, name: str) -> None:
    """Make the source of a use case ready to be followed by its log."""
    from tasks.common.command import find_use_case  # noqa: PLC0415  # what no other verb needs, and loads
    from tasks.stream.prepare_source import prepare_source  # noqa: PLC0415

    use_case, home = find_use_case(name, find_params(os.environ)), stack.home()
    print(*prepare_source(use_case, source_admin_dsn(home), follower_dsn(home)), sep="\n")


def clean_stack(stack: Stack) -> None:
    """Delete all that it stored."""
    stack.clean()
    print(f"{stack.folder} is gone")


def _run_verb(stack: Stack, verb: str, groups: tuple[str, ...], command: list[str]) -> int:
    match verb:
        case "up":
            return start_stack(stack, groups)
        case "status":
            return print_status(stack)
        case "run":
            return run_command(stack, command)
        case "sql":
            open_database(stack, command[0], command[1:])
        case "key":
            issue_key(stack, *command)
        case "revoke":
            revoke_keys(stack, *command)
        case "publish":
            publish_source(stack, *command)
        case "stop":
            print("stopped" if stack.stop() else "no stack was running")
        case "clean":
            clean_stack(stack)
        case "env":
            print(*(f"{name}={value}" for name, value in stack.environment().items()), sep="\n")
    return 0


def main(words: list[str]) -> int:
    """Exit status 0, or 1 with one line that says what to do."""
    parser = argparse.ArgumentParser(prog="python -m infra.local", description=__doc__)
    parser.add_argument("verb", choices=_VERBS)
    parser.add_argument("--home", type=Path, default=default_home(), help="the state folder")
    parser.add_argument("--no-airflow", action="store_true", help="only the stores and MLflow")
    own, command = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    given = parser.parse_args(own)
    if given.verb in {"key", "revoke"} and len(command) != 1:
        parser.error(f"expected one client: python -m infra.local {given.verb} -- <client>")
    if given.verb == "publish" and len(command) != 1:
        parser.error("expected one use case: python -m infra.local publish -- <use case>")
    if given.verb == "sql" and not command:
        parser.error("expected a database: python -m infra.local sql -- warehouse [options of psql]")
    groups = tuple(name for name in GROUPS if name != "airflow" or not given.no_airflow)
    try:
        return _run_verb(Stack(given.home), given.verb, groups, command)
    except (ValueError, OSError) as error:
        print(f"windsock: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
