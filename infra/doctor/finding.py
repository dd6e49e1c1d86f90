"""What a check found."""

from collections.abc import Mapping
from dataclasses import dataclass

Environment = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check's result: what was observed, and what to do about it: nothing where all is well."""

    check: str
    observation: str
    remedy: str = ""

    @property
    def is_ok(self) -> bool:
        """Whether nothing has to be changed."""
        return not self.remedy

    def __str__(self) -> str:
        """One line, and a second with what to change."""
        head = f"{'ok' if self.is_ok else 'WRONG':<6} {self.check:<16} {self.observation}"
        return head if self.is_ok else f"{head}\n{'':<6} {'':<16} -> {self.remedy}"


RESTART = "then `docker compose up --detach --wait`; embedded: `make stop`, `make up`"
