"""How the product's code is built, from its syntax trees: import circles, names that stand twice, sizes.

    python -m tests.architecture             what `make check` asks: circles and repeated names end it with 1
    python -m tests.architecture --count     statements, functions and modules, a line a package

Every import counts, also inside a function or under TYPE_CHECKING: a type in the wrong file is a knot, too.
"""

import argparse
import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

PACKAGES = (
    "adapters", "dags", "expectations", "features", "infra", "models", "orchestration", "pipeline", "serving", "tasks",
)  # fmt: skip
LONGEST_MODULE_LINES = 300
LONG_MODULES = {"features/flights.py": "one definition, read from top to bottom"}

# Public names that stand in more than one module, and why they may.
SHARED_NAMES: Mapping[str, str] = {
    "main": "what `python -m` runs",
}


@dataclass(frozen=True, kw_only=True)
class Module:
    """One file of the product: its dotted name, its path from the root, its text and its tree."""

    name: str
    path: Path
    text: str
    tree: ast.Module


def read_modules(root: Path) -> dict[str, Module]:
    """Dotted name -> module, of every package of the product."""
    paths = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    modules = [_read_module(path, root) for path in paths]
    return {module.name: module for module in modules}


def _read_module(path: Path, root: Path) -> Module:
    parts = path.relative_to(root).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    text = path.read_text()
    return Module(name=name, path=path.relative_to(root), text=text, tree=ast.parse(text))


def list_imports(module: Module, known: Mapping[str, Module]) -> set[str]:
    """The modules of the product that this one imports anywhere in its text; never itself."""
    named: set[str] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            named |= {_resolve(node.module, alias.name, known) for alias in node.names}
    return {name for name in named if name in known} - {module.name}


def _resolve(package: str, name: str, known: Mapping[str, Module]) -> str:
    """`from package import name` names a module, or something inside the package."""
    return f"{package}.{name}" if f"{package}.{name}" in known else package


def find_circle(modules: Mapping[str, Module]) -> list[str] | None:
    """Modules each of which imports the next, the last the first again; None where there are none."""
    graph = {name: list_imports(module, modules) for name, module in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return None


def list_public_names(modules: Mapping[str, Module]) -> dict[str, list[str]]:
    """Name of a public function or class at the top of a module -> the modules that define it."""
    where: dict[str, list[str]] = defaultdict(list)
    for module in modules.values():
        for node in module.tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
                where[node.name].append(module.name)
    return dict(where)


def list_problems(modules: Mapping[str, Module]) -> list[str]:
    """What is not as it is to be, a sentence each."""
    circle = find_circle(modules)
    problems = [f"import circle: {' <- '.join(circle)}"] if circle else []
    for name, where in sorted(list_public_names(modules).items()):
        if len(where) > 1 and name not in SHARED_NAMES:
            problems.append(f"{name} is defined in {', '.join(where)}: give each a name of its own")
    for module in modules.values():
        lines = module.text.count("\n")
        if lines > LONGEST_MODULE_LINES and module.path.as_posix() not in LONG_MODULES:
            problems.append(f"{module.path} has {lines} lines, more than {LONGEST_MODULE_LINES}: split it")
    return problems


def _list_functions(modules: Mapping[str, Module]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for module in modules.values():
        yield from (n for n in ast.walk(module.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def count_statements(module: Module) -> int:
    """Statements of a module, nested ones too; a docstring is none."""
    statements = [node for node in ast.walk(module.tree) if isinstance(node, ast.stmt)]
    return sum(not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)) for s in statements)


def count_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function's body, without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def describe_size(modules: Mapping[str, Module]) -> str:
    """A line a package, and one of all."""
    lines = []
    for package in (*PACKAGES, ""):
        chosen = {name: module for name, module in modules.items() if name.split(".")[0] == package or not package}
        statements = sum(count_statements(module) for module in chosen.values())
        lengths = [count_lines(function) for function in _list_functions(chosen)]
        typical = f"{median(lengths):g}" if lengths else "-"
        lines.append(
            f"{package or 'all':14} {len(chosen):4} modules {statements:6} statements"
            f" {len(lengths):5} functions, median {typical} lines"
        )
    return "\n".join(lines)


def main() -> int:
    """Say what is wrong, or how large it is."""
    parser = argparse.ArgumentParser(prog="python -m tests.architecture", description=__doc__)
    parser.add_argument("--count", action="store_true", help="sizes instead of the check")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="another checkout")
    arguments = parser.parse_args()
    modules = read_modules(arguments.root)
    if arguments.count:
        print(describe_size(modules))
        return 0
    problems = list_problems(modules)
    print("\n".join(problems) or f"{len(modules)} modules: no import circle, no name twice, none too long")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
