"""What a client tells of an event, field by field: what a body is checked by, and what its schema is made from."""

from dataclasses import dataclass
from typing import Literal, get_args

RequestKind = Literal["varchar", "bigint", "timestamp"]  # of `vocabulary.ColumnKind`: fractions have not been needed


@dataclass(frozen=True, kw_only=True)
class RequestField:
    """One thing a client tells of an event. Bounds are inclusive; a pattern must match the whole text."""

    name: str
    kind: RequestKind
    meaning: str
    example: str | int
    required: bool = True
    pattern: str | None = None
    minimum: int | None = None
    maximum: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(RequestKind):
            raise ValueError(f"{self.name}: expected a kind among {get_args(RequestKind)}, got {self.kind!r}")
