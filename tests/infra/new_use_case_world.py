"""A table of orders with columns of many types, and a copy of the repository in which commands write."""

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.settings import REPOSITORY
from tests.architecture import PACKAGES
from tests.pages import read_blocks

# 16 weeks; an order is due some days after it was placed, and late more often by some customers and channels.
ORDERS = """
create type channel as enum ('web', 'shop', 'phone');
create table orders (
    order_id bigint primary key, customer_id integer not null, country char(2) not null, channel channel not null,
    amount numeric(10, 2) not null, weight real, discount double precision, is_gift boolean not null, wanted_on date,
    "Group" smallint not null, token uuid not null, note text, tags text[], extra jsonb,
    placed_at timestamptz not null, due_at timestamptz not null, settled_at timestamp,
    hours_late numeric, is_late boolean
);
select setseed(0.5);
insert into orders
select n, customer, (array['DE', 'FR', 'PL', 'ES'])[1 + customer % 4], channel, round((5 + 95 * random())::numeric, 2),
    case when random() < 0.9 then (random() * 20)::real end, case when random() < 0.5 then random() / 2 end,
    random() < 0.1, (placed_at + interval '4 days')::date, 1 + n % 7,
    md5(n::text)::uuid, case when random() < 0.2 then 'call ' || n end, array['a', n::text], '{}',
    placed_at, due_at, (due_at + late * interval '1 hour') at time zone 'Europe/Warsaw',
    round(late::numeric, 1), late > 12
from (
    select *, placed_at + (6 + 90 * random()) * interval '1 hour' as due_at,
        greatest(0, 40 * random() - 14 + case customer % 5 when 0 then 14 else 0 end
            + case channel when 'phone' then 10 else 0 end) as late
    from (
        select n, (1 + floor(300 * random()))::int as customer,
            (array['web', 'web', 'shop', 'phone'])[1 + floor(4 * random())::int]::channel as channel,
            timestamptz '2025-01-06 00:00 UTC' + (n + random()) * interval '16 weeks' / 16000 as placed_at
        from generate_series(0, 15999) n
    ) placed
) due;
update orders set settled_at = null, hours_late = null, is_late = null
where settled_at at time zone 'Europe/Warsaw' >= timestamptz '2025-04-28 00:00 UTC';
"""
[ANSWERS] = read_blocks("docs/bring-your-own-table.md", "yaml")
LINES = """
create schema sales;
create view sales."Order Lines" as
select order_id as "Order No.", due_at as "select", placed_at as known_at, hours_late as "Hours % late",
    is_late as "Ist spät", channel as "Channel", amount, settled_at, "Group", customer_id as "order"
from orders
"""
PHONED = """
table: orders
event_time: placed_at
available_at: placed_at
key: [order_id]
target: channel
positive: phone
kind: binary
lead_minutes: 0
label_delay_hours: 24
zone: Europe/Warsaw
"""
HOURS = """
table: sales."Order Lines"
event_time: select
available_at: known_at
key: Order No.
target: Hours % late
kind: regression
lead_minutes: 60
label_delay_hours: 48
label_known_at: settled_at
zone: Europe/Warsaw
"""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A copy of the repository's files, whose commands read and write there, with these environment variables."""

    root: Path
    environment: Mapping[str, str]

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """A command of its Python, without a terminal."""
        variables = {
            **self.environment,
            "WINDSOCK_PARAMS": str(self.root / "params.yaml"),
            "PYTHONPATH": str(self.root),
            **more,
        }
        return subprocess.run(
            [sys.executable, *arguments], env=variables, cwd=self.root, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    def write_use_case(self, name: str, answers: str) -> subprocess.CompletedProcess[str]:
        """`make new-use-case` with a file of answers."""
        (self.root / "answers.yaml").write_text(answers)
        return self.run("-m", "infra.new_use_case", name, "--answers", "answers.yaml")

    def check(self, name: str) -> subprocess.CompletedProcess[str]:
        """`make check-use-case`."""
        return self.run("-m", "tasks.check_use_case", name)

    def fill_blanks(self, name: str) -> None:
        """As if a person had done what they say: nothing of it is needed by this table."""
        self.write_blanks(name, [])

    def read_blanks(self, name: str) -> list[str]:
        """What is still to be done: the lines of the tuple, without their quotes."""
        _, lines, _ = self._cut_blanks(name)
        return [line.strip().removesuffix(",").strip('"') for line in lines.splitlines()]

    def write_blanks(self, name: str, left: Sequence[str]) -> None:
        """With these left to be done, and no others."""
        head, _, rest = self._cut_blanks(name)
        lines = "".join(f'    "{blank}",\n' for blank in left)
        (self.root / "features" / f"{name}.py").write_text(f"{head}{lines}{rest}")

    def _cut_blanks(self, name: str) -> tuple[str, str, str]:
        text, opened = (self.root / "features" / f"{name}.py").read_text(), "BLANKS: tuple[str, ...] = (\n"
        begin = text.index(opened) + len(opened)
        end = text.index(")\n", begin) if text.startswith(")", begin) else text.index("\n)\n", begin) + 1
        return text[:begin], text[begin:end], text[end:]

    def read_all(self) -> dict[str, bytes]:
        """Path -> content of all that a person would commit."""
        files = (path for path in self.root.rglob("*") if path.is_file() and "cache" not in str(path))
        return {str(path.relative_to(self.root)): path.read_bytes() for path in files}


def make_copy(folder: Path, environment: Mapping[str, str]) -> Copy:
    """The packages, and what stands beside them."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in PACKAGES:
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for name in ("params.yaml", "dvc.yaml", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, folder / name)
    (folder / "tests").mkdir()
    (folder / "tests" / "__init__.py").touch()
    return Copy(root=folder, environment=environment)
