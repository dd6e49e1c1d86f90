"""Live progress of the replay: one line an event, with the time since the start."""

import sys
import time
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Progress:
    """Prints `[mm:ss] stage  what happened`; on a terminal the line being waited on is rewritten in place."""

    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def say(self, stage: str, text: str) -> None:
        """A line that stays."""
        self._write(f"{self._line(stage, text)}\n")

    def waiting(self, stage: str, text: str) -> None:
        """A line that the next one replaces; on a log file it is not written at all."""
        if sys.stdout.isatty():
            self._write(self._line(stage, text))

    def _line(self, stage: str, text: str) -> str:
        minutes, seconds = divmod(int(self.elapsed_seconds), 60)
        return f"[{minutes:2d}:{seconds:02d}] {stage:<16} {text}"

    def _write(self, text: str) -> None:
        sys.stdout.write(("\r\033[K" if sys.stdout.isatty() else "") + text)
        sys.stdout.flush()
