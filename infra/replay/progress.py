"""Live progress of the replay: one line an event, with the time since the start."""

import sys
import time
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class ReplayProgress:
    """Prints `[mm:ss] stage  what happened`.

    What is being waited on is one line rewritten in place on a terminal; in a log, a line each time it has changed,
    not more often than every `log_seconds`.
    """

    started: float = field(default_factory=time.monotonic)
    log_seconds: float = 15
    _waited_on: str = ""
    _logged: float = 0

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def say(self, stage: str, text: str) -> None:
        """A line that stays."""
        self._write(f"{self._line(stage, text)}\n")

    def waiting(self, stage: str, text: str) -> None:
        """A line that the next one replaces."""
        if sys.stdout.isatty():
            self._write(self._line(stage, text))
        elif text != self._waited_on and self.elapsed_seconds - self._logged > self.log_seconds:
            self._waited_on, self._logged = text, self.elapsed_seconds
            self.say(stage, text)

    def _line(self, stage: str, text: str) -> str:
        minutes, seconds = divmod(int(self.elapsed_seconds), 60)
        return f"[{minutes:2d}:{seconds:02d}] {stage:<16} {text}"

    def _write(self, text: str) -> None:
        sys.stdout.write(("\r\033[K" if sys.stdout.isatty() else "") + text)
        sys.stdout.flush()
