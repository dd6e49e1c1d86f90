"""The code is built as `make check` asks, and what asks it sees each fault."""

from pathlib import Path

import pytest

from pipeline.settings import REPOSITORY
from tests import architecture


def written(folder: Path, **texts: str) -> dict[str, architecture.Module]:
    """The modules of a small product, each given as package__module=text."""
    for name, text in texts.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return architecture.read_modules(folder)


def test_the_product_has_no_import_circle_no_repeated_name_and_no_overlong_module() -> None:
    assert architecture.list_problems(architecture.read_modules(REPOSITORY)) == []


@pytest.mark.parametrize(
    "back",
    [
        "from tasks.a import f",
        "from tasks import a",
        "import tasks.a",
        "def g():\n    from tasks import a",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tasks.a import f",
    ],
)
def test_a_circle_of_files_is_found_wherever_the_import_stands(tmp_path: Path, back: str) -> None:
    circle = architecture.find_circle(written(tmp_path, tasks__a="from tasks import b\ndef f(): ...", tasks__b=back))
    assert circle is not None
    assert set(circle) == {"tasks.a", "tasks.b"}
    assert architecture.find_circle(written(tmp_path, tasks__b="import json")) is None


def test_a_name_that_stands_twice_is_a_problem_and_a_private_or_nested_one_is_none(tmp_path: Path) -> None:
    modules = written(
        tmp_path, tasks__a="def load(): ...\ndef _own(): ...", models__b="class C:\n    def load(self): ..."
    )
    assert architecture.list_problems(modules) == []
    [problem] = architecture.list_problems(written(tmp_path, serving__c="class load: ...\ndef _own(): ..."))
    assert problem.startswith("load is defined in serving.c, tasks.a")


def test_an_overlong_module_is_a_problem(tmp_path: Path) -> None:
    [problem] = architecture.list_problems(written(tmp_path, tasks__a="x = 1\n" * 301))
    assert problem.startswith("tasks/a.py has 301 lines")
    assert architecture.list_problems(written(tmp_path, tasks__a="x = 1\n" * 300)) == []


def test_statements_are_counted_without_docstrings(tmp_path: Path) -> None:
    module = written(tmp_path, tasks__a='"""Doc."""\nimport os\ndef f():\n    """Doc."""\n    x = 1\n    return x\n')[
        "tasks.a"
    ]
    assert architecture.count_statements(module) == 4
    assert (
        "all               1 modules      4 statements     1 functions, median 2 lines"
        in architecture.describe_size({"tasks.a": module})
    )
