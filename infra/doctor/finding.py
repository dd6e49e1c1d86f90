"""What a check found."""

from collections.abc import Mapping
from dataclasses import dataclass

Environment = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check's result: `said` is what was seen; `change` is what to do about it, empty where all is well."""

    check: str
    said: str
    change: str = ""

    @property
    def well(self) -> bool:
        """Whether nothing has to be changed."""
        return not self.change

    def __str__(self) -> str:
        """One line, and a second with what to change."""
        head = f"{'ok' if self.well else 'WRONG':<6} {self.check:<16} {self.said}"
        return head if self.well else f"{head}\n{'':<6} {'':<16} -> {self.change}"


RESTART = "then `docker compose up --detach --wait`; embedded: `make stop`, `make up`"
