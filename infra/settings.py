"""Files of NAME=VALUE lines: what docker-compose and the embedded stack read alike."""

from pathlib import Path

INFRA = Path(__file__).resolve().parent
COMMON = INFRA / "settings.env"
AIRFLOW = INFRA / "airflow" / "settings.env"


def parse_assignments(text: str) -> dict[str, str]:
    """The names and values of a file's text; blank lines and comments are left out.

    Raises:
        ValueError: a line is none of these.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if wrong := [line for line in lines if "=" not in line]:
        raise ValueError(f"expected NAME=VALUE, got {wrong[0]!r}")
    return dict(line.split("=", 1) for line in lines)


def read_assignments(path: Path) -> dict[str, str]:
    """The names and values in a file."""
    return parse_assignments(path.read_text())
