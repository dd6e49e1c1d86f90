"""What params.yaml is made of: blocks, the kinds of values in them, and the metrics a target of each kind has."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

_CRON_FIELDS = {"minute": (0, 59), "hour": (0, 23), "day of month": (1, 31), "month": (1, 12), "day of week": (0, 7)}
_RELATION_PART = re.compile(r"""("(?:[^"]|"")+")|([^\W\d][\w$]*)""")
_RELATION = re.compile(rf"(?:{_RELATION_PART.pattern})(?:\.(?:{_RELATION_PART.pattern}))?")
_SEVERAL_CLASSES = {"multiclass", "multinomial", "multilabel", "categorical", "classification", "ordinal"}
_CRON_PART = re.compile(r"(?:\*|(\d+)(?:-(\d+))?)(?:/([1-9]\d*))?")


def _identifier(name: str) -> str:
    if not name.replace("_", "a").isalnum() or not name[0].isalpha() or name != name.lower() or not name.isascii():
        raise ValueError("expected lower-case letters, digits and underscores, starting with a letter")
    return name


def _cron(text: str) -> str:
    """Numbers, ranges, lists and steps; names such as `mon` are left to whoever writes them as numbers."""
    fields = text.split()
    if len(fields) != len(_CRON_FIELDS):
        raise ValueError(f"expected five fields, {', '.join(_CRON_FIELDS)}")
    for field, (name, (low, high)) in zip(fields, _CRON_FIELDS.items(), strict=True):
        for part in field.split(","):
            matched = _CRON_PART.fullmatch(part)
            bounds = [int(bound) for bound in matched.groups()[:2] if bound] if matched else []
            if not matched or bounds != sorted(bounds) or any(not low <= bound <= high for bound in bounds):
                raise ValueError(f"{name} {part!r}: expected *, numbers from {low} to {high}, a range or a /step")
    return text


def split_relation(text: str) -> tuple[str, ...]:
    """The parts of a name as SQL writes it: a table, or a schema and a table; what is not quoted is in lower case.

    Raises:
        ValueError: it is no such name.
    """
    if not _RELATION.fullmatch(text):
        raise ValueError("expected a name as in SQL: a table or schema.table, in double quotes where SQL needs them")
    parts = [quoted or bare for quoted, bare in _RELATION_PART.findall(text)]
    return tuple(part[1:-1].replace('""', '"') if part.startswith('"') else part.lower() for part in parts)


def _relation(text: str) -> str:
    split_relation(text)
    return text


def refuse_classes(kind: Any) -> Any:
    """A kind of target, as it is.

    Raises:
        ValueError: a word for several classes; says what to set.
    """
    if isinstance(kind, str) and kind.lower().replace("-", "").replace("_", "") in _SEVERAL_CLASSES:
        raise ValueError(
            "several classes are not built (docs/decisions/0035): expected binary, with label 1 for one class and 0 for"
            " the rest (a use case a class), or regression"
        )
    return kind


Identifier = Annotated[str, AfterValidator(_identifier)]
RelationName = Annotated[str, AfterValidator(_relation)]
Cron = Annotated[str, AfterValidator(_cron)]
Share = Annotated[float, Field(ge=0, le=1)]
Kind = Literal["binary", "regression"]
Metric = Literal["log_loss", "auc", "pr_auc", "brier", "calibration_gap", "mae", "rmse", "rmsle", "bias"]

METRICS: Mapping[Kind, tuple[Metric, ...]] = {
    "binary": ("log_loss", "auc", "pr_auc", "brier", "calibration_gap"),
    "regression": ("mae", "rmse", "rmsle", "bias"),
}
IntervalMetric = Literal["interval_coverage", "interval_width"]  # of a regression that declares `target.interval`
WatchedMetric = Literal[Metric, IntervalMetric]
INTERVAL_METRICS: tuple[IntervalMetric, ...] = ("interval_coverage", "interval_width")
RANKINGS = frozenset[Metric]({"auc", "pr_auc"})  # larger is better, 0.5 or less is no better than a coin
ResampledBlock = Literal["day", "two_days", "week", "entity"]
BLOCK_DAYS: Mapping[ResampledBlock, int] = {"day": 1, "two_days": 2, "week": 7}
_BLOCK_HOURS: tuple[tuple[int, ResampledBlock], ...] = ((24, "day"), (48, "two_days"))
ENTITY_GROUPS = 200  # of entities, which are a block together: as many blocks as an error needs
FEWEST_BLOCKS = 4  # of a holdout: of fewer no spread can be told
SHARES = frozenset[Metric]({"auc", "pr_auc", "brier", "calibration_gap"})  # never outside [0, 1]


def default_block(label_delay_hours: int) -> ResampledBlock:
    """The shortest block of time that labels come within; a week where they take longer than two days."""
    return next((block for hours, block in _BLOCK_HOURS if label_delay_hours <= hours), "week")


class Block(BaseModel):
    """A block of params.yaml: frozen, no key is ignored, and none contradicts another."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if problems := list(self._contradictions()):
            raise ValueError("\n".join(problems))
        return self

    def _contradictions(self) -> Iterator[str]:
        """What is wrong with the keys taken together: the key, and what was expected there."""
        yield from ()
