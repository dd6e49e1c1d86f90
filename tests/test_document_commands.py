"""What the documents tell people to type works as printed: each is run, or given to the program that reads it.

Elsewhere are run: the requests of docs/online.md (tests/e2e, all of them), the YAML of docs/monitoring.md
(tests/infra/test_rules.py), and what `make` and `docker compose` start (CI, tests/infra/test_compose.py).
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import psycopg2
import pytest
import yaml

from adapters.connect import Outside
from infra.local.__main__ import main as manage_stack
from pipeline.online import AnswerSettings
from pipeline.settings import REPOSITORY
from pipeline.spec import use_cases
from tasks.stream.deliver_answers import make_document
from tests.test_documents import PAGES

SHELL, QUERY = ("make ", "docker compose ", "python -m ", ".venv/bin/python -m "), ("select ", "delete from ")
ELSEWHERE = {"online.md": ("set -a", "curl ")}
NOWHERE = "postgresql://someone:secret@127.0.0.1:1/none"
COMPOSE_VERBS = {"down", "exec", "logs", "ps", "run", "up"}


class UnknownCommand(ValueError):  # noqa: N818  # a test's own
    """Nothing here knows how to try it."""


def list_blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of each block, fenced or indented; the README's tree is left out: another test reads it."""
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"(?<=\n\n)(?:^    .+\n)+", rest, flags=re.MULTILINE)
    return [(language, block) for language, block in fenced if "pipeline/  " not in block] + [("", b) for b in indented]


def list_commands(text: str) -> list[str]:
    """Each command line of its blocks, each command and query in its sentences."""
    lines = list[str]()
    for language, block in list_blocks(text):
        if language in ("", "sh"):
            lines += re.sub(r"\\\n|\n(?=  )", " ", block).strip().splitlines()
    inline = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [
        line.strip() for line in [*lines, *(i.replace("\n", " ") for i in inline if i.startswith((*SHELL, *QUERY)))]
    ]


def try_make(words: list[str]) -> None:
    words = [f"{word}x" if word.endswith("=") else word for word in words]
    done = subprocess.run(["make", "-n", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def try_compose(words: list[str]) -> None:
    composed = yaml.safe_load((REPOSITORY / "docker-compose.yaml").read_text())
    profiles = {name for service in composed["services"].values() for name in service.get("profiles", ())} | {"*"}
    while words[0] == "--profile":
        assert words[1] in profiles, words
        words = words[2:]
    verb, *others = words
    assert verb in COMPOSE_VERBS, verb
    named = [word for word in others if not word.startswith("-")]
    assert not named or named[0] in composed["services"], named
    if verb in ("exec", "run"):
        try_inside(others[others.index(named[0]) + 1 :])


def try_inside(words: list[str]) -> None:
    """What is run in a container, by the same programs here."""
    if words[:2] == ["sh", "-c"]:
        words = shlex.split(words[2])
    program, *others = words
    if program == "airflow":
        others = [re.sub(r"^\$\(.*\)$", "2026-01-01", word) for word in others]
        parse = f"from airflow.cli.cli_parser import get_parser; get_parser().parse_args({others!r})"
        command = [sys.executable, "-c", parse]
    elif program == "mlflow":
        assert others[-1] == "$MLFLOW_BACKEND_STORE_URI"
        command = [sys.executable, "-m", "mlflow", *others[:-1], "--help"]
    elif program == "find":
        command = ["find", str(REPOSITORY / "docs"), *(word for word in others[1:] if word != "-delete"), "-quit"]
    else:
        raise UnknownCommand(program)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def try_module(words: list[str], folder: Path, settings: Mapping[str, str]) -> None:
    """Where there is no stack most say so; who does not understand the command line says how it is used."""
    module, *others = [word.replace("<client>", "someone").replace("<use case>", "flights") for word in words]
    assert find_spec(module) is not None, module
    if module == "infra.local":
        if others[0] not in ("up", "run"):
            try:
                assert manage_stack(["--home", str(folder), *others]) in (0, 1)
            except SystemExit as end:
                raise AssertionError(f"it ends with {end.code}") from end
        elif "--" in others:
            words = others[others.index("--") + 1 :]
            try_module(words[2:], folder, settings) if words[0] == "python" else try_inside(words)
        return
    command = [sys.executable, "-m", module, *(others or ["--help"])]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), **settings}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert "usage:" not in done.stderr, done.stderr
    assert "Traceback" not in done.stderr, done.stderr


def try_setting(name: str) -> None:
    texts = [(REPOSITORY / file).read_text() for file in ("docker-compose.yaml", ".env.example")]
    assert any(re.search(rf"\b{name}\b", text) for text in texts), name


def try_command(command: str, folder: Path, query: Callable[[str], object]) -> None:
    """Run one, or give it to who reads it.

    Raises:
        UnknownCommand: nothing here can try it.
        AssertionError: it is wrong.
    """
    if command.startswith(QUERY):
        query(command)
        return
    words = shlex.split(re.sub(r"<([a-z ]+)>", r"'<\1>'", command), comments=True)
    settings = dict[str, str]()
    while words and re.match(r"[A-Z_]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        try_setting(name)
        settings[name] = value.replace("...", NOWHERE)
    match words:
        case []:
            return
        case ["make", *others]:
            try_make(others)
        case ["docker", "compose", *others]:
            try_compose(others)
        case ["python" | ".venv/bin/python", "-m", *others]:
            try_module(others, folder, settings)
        case ["helm", *others]:  # tests/infra/test_helm.py renders them
            assert all((REPOSITORY / word).exists() for word in others if word.startswith("infra/")), others
        case _:
            raise UnknownCommand(command)


def find_problems(page: str, text: str, folder: Path, outside: Outside) -> list[str]:
    """What is wrong with the commands of a page, and how."""

    def query(sql: str) -> None:
        outside.warehouse.query(f"explain {sql}".replace("'...'", "null"))

    problems = []
    for command in list_commands(text):
        if command.startswith(ELSEWHERE.get(page, ("nothing",))):
            continue
        try:
            try_command(command, folder, query)
        except (UnknownCommand, AssertionError, psycopg2.Error) as problem:
            problems.append(f"{page}: {command}: {problem}")
    return problems


def test_every_command_and_query_of_every_page_works(outside: Outside, tmp_path: Path) -> None:
    pages = {page: page.read_text() for page in PAGES}
    assert sum(len(list_commands(text)) for text in pages.values()) > 60
    problems = [p for page, text in pages.items() for p in find_problems(page.name, text, tmp_path, outside)]
    assert problems == [], "\n".join(problems)


def test_settings_and_messages_that_a_page_shows_are_of_their_form() -> None:
    """Of docs/online.md; the YAML of docs/monitoring.md is tried elsewhere."""
    blocks = dict(list_blocks((REPOSITORY / "docs" / "online.md").read_text()))
    shown = yaml.safe_load(blocks["yaml"])["answers"]
    assert AnswerSettings.model_validate(shown).webhook is not None
    with pytest.raises(ValueError, match="max_answer"):
        AnswerSettings.model_validate(shown | {"webhook": {**shown["webhook"], "max_answer": 1}})
    message = json.loads(blocks["json"])
    [answer] = message["data"]["answers"]
    moments = {
        name: datetime.fromisoformat(answer[name])
        for name in answer
        if name.endswith(("_time", "_at", "until")) and isinstance(answer[name], str)
    }
    row = {**answer, "score": answer["probability"], **moments}
    made = json.loads(make_document(use_cases(REPOSITORY / "params.yaml")["flights"], [row]))
    assert made["data"] == message["data"] | {"answers": [answer | {n: m.isoformat() for n, m in moments.items()}]}
    assert made.keys() == message.keys()


WRONG = {
    "a verb that there is not": "```\nmake demos\n```",
    "a service that there is not": "say `docker compose logs streams`",
    "a profile that there is not": '`docker compose --profile "gpus" up`',
    "a module that there is not": "`python -m tasks.stream.prepare_sauce flights`",
    "an option that there is not": "`python -m tests.architecture --counts`",
    "a word that the stack does not know": "`.venv/bin/python -m infra.local keys -- <client>`",
    "a column that there is not": "`select known_unto from stream_state`",
    "a table that there is not": "`delete from online_answer where answered_at < now()`",
    "a setting that there is not": "```\nPARALLELISMS=8\n```",
    "what a container's program does not know": "```\ndocker compose exec scheduler airflow db clear --yes\n```",
    "a program that nothing here tries": "```sh\nkubectl apply\n```",
    "an indented line": "so:\n\n    python -m tasks.stream.prepare_source --admin flights\n",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_sabotage_what_does_not_work_is_named(text: str, outside: Outside, tmp_path: Path) -> None:
    assert len(find_problems("page.md", f"# Page\n\n{text}\n", tmp_path, outside)) == 1


def test_what_works_is_not_named(outside: Outside, tmp_path: Path) -> None:
    """The twins of the wrong ones."""
    text = (
        "```\nmake demo\nPARALLELISM=8\n```\n`docker compose logs stream`"
        ' `docker compose --profile "gpu" up` `python -m tests.architecture --count`'
        " `select known_until from stream_state`"
    )
    assert len(list_commands(text)) == 6
    assert find_problems("page.md", text, tmp_path, outside) == []
