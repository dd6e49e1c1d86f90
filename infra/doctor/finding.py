"""What a check found."""

from collections.abc import Mapping
from dataclasses import dataclass

Environment = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check's result: what was observed, and what to do about it: nothing where all is well.

    `hint` says what ends a state that is no fault, such as waiting; nothing has to be changed for it.
    """

    check: str
    observation: str
    remedy: str = ""
    hint: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether nothing has to be changed."""
        return not self.remedy

    def __str__(self) -> str:
        """One line, and a second with what to change, or what is waited for."""
        level, more = "WRONG" if self.remedy else "note" if self.hint else "ok", self.remedy or self.hint
        head = f"{level:<6} {self.check:<16} {self.observation}"
        return f"{head}\n{'':<6} {'':<16} -> {more}" if more else head


RESTART = "then `docker compose up --detach --wait`; embedded: `make stop`, `make up`"
