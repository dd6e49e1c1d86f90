"""The energy a piece of work took, where the machine can be read: the counters of its processor packages (RAPL).

They count what the whole machine takes, idle parts and neighbours included, so they are an upper bound. Most virtual
machines have none, and elsewhere they may be root's; an accelerator's are not read, and the packages' say nothing of
it. Then there is no figure, rather than a guess.
"""

from dataclasses import dataclass, field
from pathlib import Path

COUNTERS = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Meter:
    """Started when it is made, of work on a device."""

    device: str
    counters: Path = COUNTERS
    _before: dict[Path, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_before", self._read())

    def joules(self) -> float | None:
        """Joules since; None where nothing can be read. A counter is taken to have overflowed at most once since."""
        now = self._read()
        if self.device != "cpu" or not now or now.keys() != self._before.keys():
            return None
        return sum(self._since(package, microjoules) for package, microjoules in now.items()) / 1e6

    def _since(self, package: Path, microjoules: int) -> int:
        difference = microjoules - self._before[package]
        return difference if difference >= 0 else difference + int((package / "max_energy_range_uj").read_text())

    def _read(self) -> dict[Path, int]:
        """Microjoules by package: `intel-rapl:0` is one, `intel-rapl:0:1` a part of it."""
        found = {}
        for package in sorted(self.counters.glob("intel-rapl:*")):
            if package.name.count(":") == 1:
                try:
                    found[package] = int((package / "energy_uj").read_text())
                except PermissionError:
                    return {}
        return found
