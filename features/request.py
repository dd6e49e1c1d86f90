"""What a client tells of an event, field by field: what a body is checked by, and what its schema is made from."""

from dataclasses import dataclass
from typing import Literal, get_args

RequestKind = Literal["varchar", "bigint", "timestamp", "double", "boolean", "date"]  # of `vocabulary.ColumnKind`


@dataclass(frozen=True, kw_only=True)
class RequestField:
    """One thing a client tells of an event. Bounds are inclusive; a pattern must match the whole text.

    A text without a pattern may be long, and of any script; '' is a text. A number of exact digits is told as a
    `double`, and a day (`date`) stands for the midnight in UTC that it begins with, as in a source.
    """

    name: str
    kind: RequestKind
    meaning: str
    example: str | float
    required: bool = True
    pattern: str | None = None
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(RequestKind):
            raise ValueError(f"{self.name}: expected a kind among {get_args(RequestKind)}, got {self.kind!r}")
