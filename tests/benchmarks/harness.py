"""Rounds, statistics and the table.

A *case* is one system at one family of works, perhaps in one of several tunings (the best of which counts). Each round
runs every case once, in an order that turns around from round to round, so that whatever else the machine does falls on
all alike.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from uuid import uuid4

from rich.console import Console
from rich.table import Table

from tests.benchmarks import child
from tests.servers import Server

__all__ = ["Bench", "Case", "Family", "Numbers", "Row", "Work", "main", "rows_of"]

Numbers = dict[str, float]
"""What one run of a case gave: a number for each work, by its name."""


class Bench(NamedTuple):
    """What a case is given to run with."""

    server: Server
    quick: bool

    def many(self, quick: int, full: int) -> int:
        """How many, by how much time there is."""
        return quick if self.quick else full

    def fresh(self) -> dict[str, Any]:
        """An empty server and a namespace that was never used: the first arguments of every piece."""
        with self.server.client() as client:
            client.flushall()
        return {"url": self.server.url, "namespace": f"bench-{uuid4().hex[:8]}"}

    def run(self, piece: Callable[..., Any], environ: Mapping[str, str] | None = None, **arguments: Any) -> Any:
        """Run a piece in a child of its own, on an empty server."""
        return child.run(piece, self.fresh() | arguments, environ)


class Work(NamedTuple):
    """Something that is measured, in a unit; ``more_is_better`` for rates."""

    name: str
    unit: str
    more_is_better: bool


@dataclass(frozen=True)
class Case:
    """One system. ``tuning`` names a setting (of several, the one with the best median counts, work by work)."""

    system: str
    measure: Callable[[Bench], Numbers]
    tuning: str = ""
    full_only: bool = False


@dataclass(frozen=True)
class Family:
    """Works that are measured together, and the systems that do them. The first is what the others are compared with."""

    works: tuple[Work, ...]
    cases: tuple[Case, ...]

    @property
    def baseline(self) -> str:
        """The system that the ratios are to."""
        return self.cases[0].system


class Row(NamedTuple):
    """One system at one work. ``ratio`` is to its family's baseline, and above 1 is better whatever the unit."""

    work: str
    system: str
    unit: str
    median: float
    min: float
    max: float
    ratio: float
    tuning: str = ""

    def as_json(self) -> dict[str, str | float]:
        """What is written: the row without its tuning."""
        return {name: value for name, value in self._asdict().items() if name != "tuning"}


Samples = dict[tuple[str, str, str], list[float]]
"""All that was measured, by (work, system, tuning)."""


def rows_of(families: Sequence[Family], bench: Bench, rounds: int) -> list[Row]:
    """Measure everything, round by round, and sum it up."""
    samples: Samples = defaultdict(list)
    started = time.monotonic()
    for number in range(rounds):
        for family in families:
            cases = [case for case in family.cases if not (case.full_only and bench.quick)]
            for case in cases if number % 2 == 0 else reversed(cases):
                numbers = case.measure(bench)
                for work, value in numbers.items():
                    samples[work, case.system, case.tuning].append(value)
                _progress(f"{time.monotonic() - started:5.0f} s  round {number + 1}", case, numbers)
    return [row for family in families for work in family.works for row in _rows(work, family.baseline, samples)]


def _progress(when: str, case: Case, numbers: Numbers) -> None:
    found = ", ".join(f"{work} {_short(value)}" for work, value in numbers.items())
    system = f"{case.system} ({case.tuning})" if case.tuning else case.system
    print(f"{when}  {system}: {found}", file=sys.stderr, flush=True)


def _rows(work: Work, baseline: str, samples: Samples) -> list[Row]:
    best: dict[str, tuple[float, list[float], str]] = {}
    for (name, system, tuning), values in samples.items():
        if name == work.name:
            goodness = median(values) if work.more_is_better else -median(values)
            if system not in best or goodness > best[system][0]:
                best[system] = (goodness, values, tuning)
    base = median(best[baseline][1])
    return [
        Row(
            work.name,
            system,
            work.unit,
            round(median(values), 4),
            round(min(values), 4),
            round(max(values), 4),
            round(median(values) / base if work.more_is_better else base / median(values), 3),
            tuning,
        )
        for system, (_, values, tuning) in best.items()
    ]


# -- showing -----------------------------------------------------------------------------------------------------------


def _table(rows: Sequence[Row], title: str) -> Table:
    table = Table(
        title=title, caption="ratio: to the first system of each work; above 1 is better, for rates and for costs alike"
    )
    for heading in ("work", "system"):
        table.add_column(heading)
    for heading in ("median", "min", "max"):
        table.add_column(heading, justify="right")
    table.add_column("unit")
    table.add_column("ratio", justify="right")
    for row, previous in zip(rows, [None, *rows], strict=False):
        if previous is not None and previous.work != row.work:
            table.add_section()
        work = "" if previous is not None and previous.work == row.work else row.work
        system = f"{row.system} ({row.tuning})" if row.tuning else row.system
        numbers = [_short(value) for value in (row.median, row.min, row.max)]
        table.add_row(work, system, *numbers, row.unit, f"{row.ratio:.2f}")
    return table


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"


def main(
    suite: str, families: Mapping[str, Family], arguments: Sequence[str], missing: Mapping[str, str] | None = None
) -> None:
    """The command line of a suite: measure, print the table, write the rows; say which systems are ``missing``, and why."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.benchmarks {suite}")
    parser.add_argument("--quick", action="store_true", help="fewer messages, fewer tunings")
    parser.add_argument("--rounds", type=int, default=3, help="how often each case runs (3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the rows")
    parser.add_argument("--only", nargs="+", choices=tuple(families), metavar="WORK", help=f"of {', '.join(families)}")
    options = parser.parse_args(arguments)
    chosen = [family for name, family in families.items() if options.only is None or name in options.only]
    with Server() as server:
        rows = rows_of(chosen, Bench(server, options.quick), max(1, options.rounds))
        title = f"{suite}, {server.name_and_version}, {'quick, ' if options.quick else ''}{options.rounds} rounds"
    # Where the output is no terminal, rich would assume 80 columns and cut the names.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(_table(rows, title))
    absent = [{"system": system, "missing": why} for system, why in (missing or {}).items()]
    for one in absent:
        console.print(f"not measured: {one['system']}: {one['missing']}")
    if options.json is not None:
        options.json.write_text(json.dumps([*(row.as_json() for row in rows), *absent], indent=1) + "\n")
