"""The text of params.yaml -> blocks, and what was wrong with a block -> lines for the person who wrote it."""

from typing import Any

import yaml
from pydantic import ValidationError

# Keys that earlier versions had, and what to do about them.
_REMOVED_KEYS = {
    "history_days": "a feature definition says itself how far it looks back; delete this line",
    "event_time": "nothing read it; delete it",
    "calibration_quantile": "threshold_margin alone says how far above its worst week a feature may move; delete it",
}


class _Loader(yaml.SafeLoader):
    """YAML, except that a key given twice is an error: the plain loader takes the last one and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        """A mapping whose keys differ."""
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # no key of ours; refused below
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    "in a block", node.start_mark, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_blocks(text: str, *, origin: str) -> dict[Any, Any]:
    """The named blocks of a text.

    Raises:
        ValueError: it is not YAML, gives a key twice, or is no mapping.
    """
    try:
        blocks = yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise ValueError(f"{origin} is not YAML: {error}") from error
    if not isinstance(blocks, dict) or not blocks:
        raise ValueError(f"{origin}: expected one block per use case, got {type(blocks).__name__}")
    return blocks


def explain(name: str, error: ValidationError) -> list[str]:
    """One line for each wrong place of a block: its path, what was expected there, and the value found."""
    return [line for problem in error.errors() for line in _lines(name, problem)]


def _lines(name: str, problem: Any) -> list[str]:
    path = ".".join(str(part) for part in (name, *problem["loc"]) if part != "[key]")
    message, value = problem["msg"].removeprefix("Value error, "), problem["input"]
    if problem["type"] == "missing":
        return [f"{path}: missing"]
    if problem["type"] == "extra_forbidden":
        advice = _REMOVED_KEYS.get(problem["loc"][-1])
        return [f"{path}: no such key{f' any more: {advice}' if advice else ''}"]
    if problem["type"] == "value_error" and isinstance(value, dict):  # keys that contradict each other name themselves
        return [f"{path}.{line}" for line in message.splitlines()]
    given = f"a {type(value).__name__}" if isinstance(value, dict) else repr(value)  # a whole block only by its type
    return [f"{path}: {message}, got {given}"]
