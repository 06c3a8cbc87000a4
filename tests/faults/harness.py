"""How a fault is run: its world, its ledger, its row in the table."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from tests.faults.ledger import Numbers
from tests.faults.world import World
from tests.servers import Server, find_binary

__all__ = ["Broken", "Fault", "Finding", "Row", "main", "try_out"]

LOG_TAIL = 6_000


class Finding(NamedTuple):
    """What a fault has shown, where it showed what was promised.

    ``injected`` says what was really done to the system, ``time_s`` is the time that ``figure`` states, if it states one.
    """

    injected: str
    figure: str
    time_s: float | None = None


@dataclass(frozen=True)
class Fault:
    """One way to break things. ``run`` breaks them, asserts that they broke, and asserts what must hold all the same.

    ``promise`` is that, in a line. ``quick_lease_s`` is the lease of the quick form; in the full form it is the default.
    ``server`` are the options of its server, ``world`` is what it runs in.
    """

    name: str
    promise: str
    run: Callable[[Any], Finding]
    quick_lease_s: float = 7
    server: Mapping[str, Any] = field(default_factory=dict)
    world: type[World] = World


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    fault: str
    promise: str
    ok: bool
    why: str
    injected: str
    figure: str
    time_s: float | None
    took_s: float
    ledger: Numbers

    def as_json(self) -> dict[str, Any]:
        """What is written: flat."""
        row = asdict(self)
        numbers = row.pop("ledger")
        times = {name: None if row[name] is None else round(row[name], 3) for name in ("time_s", "took_s")}
        return {**row, **times, **numbers}


class Broken(AssertionError):
    """The books of a fault do not balance."""


def try_out(fault: Fault, *, quick: bool, start_server: Callable[..., Server] = Server) -> tuple[Row, Exception | None]:
    """Run one fault. What breaks is in the row, and returned as well."""
    began = time.monotonic()
    lease_s = fault.quick_lease_s if quick else 7
    finding, ledger, broken, failure = Finding("", ""), fault.world.EMPTY, list[str](), None
    with fault.world(quick=quick, lease_s=lease_s, start_server=start_server, **fault.server) as world:
        try:
            finding = fault.run(world)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other faults have their turn
            failure = error
        try:
            ledger, broken = world.balance()
        except Exception as error:  # noqa: BLE001 - as above; a server that is broken cannot be asked
            failure = failure or error
        if failure is None and broken:
            failure = Broken("; ".join(broken))
        if failure is not None:
            failure.add_note(f"The workers' logs end with:\n{world.logs()[-LOG_TAIL:]}")
    why = "; ".join(dict.fromkeys([_line_of(failure), *broken])) if failure is not None else ""
    took_s = time.monotonic() - began
    row = Row(
        fault.name,
        fault.promise,
        failure is None,
        why,
        finding.injected,
        finding.figure,
        finding.time_s,
        took_s,
        ledger,
    )
    return row, failure


def _line_of(failure: Exception) -> str:
    """What it says, or what was asserted."""
    frames = traceback.extract_tb(failure.__traceback__)
    return str(failure).partition("\n")[0] or (frames[-1].line if frames else "") or repr(failure)


# -- the command line --------------------------------------------------------------------------------------------------


def main(suite: str, faults: Sequence[Fault], arguments: Sequence[str]) -> int:
    """Run a suite as its command line asks. The exit status is 1 if any fault broke a promise."""
    names = [fault.name for fault in faults]
    parser = argparse.ArgumentParser(prog=f"python -m tests.faults {suite}")
    parser.add_argument("--quick", action="store_true", help="fewer events, shorter leases")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the rows")
    options = parser.parse_args(arguments)
    logging.getLogger("callboard").setLevel(logging.ERROR)  # what our own listener says of the links that we cut
    rows = []
    began = time.monotonic()
    for fault in faults:
        if options.only is None or fault.name in options.only:
            _tell(f"{time.monotonic() - began:5.0f} s  {fault.name}: {fault.promise}")
            row, failure = try_out(fault, quick=options.quick)
            rows.append(row)
            if failure is not None:
                _tell("".join(traceback.format_exception(failure)))
            _tell(f"{'':7}  {'ok' if row.ok else 'FAILED'} in {row.took_s:.1f} s: {row.why or row.figure}")
    title = f"{suite}, {find_binary().name_and_version()}{', quick' if options.quick else ''}"
    # Where the output is no terminal, rich would assume 80 columns and cut the names.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(_table(rows, f"{title}, {time.monotonic() - began:.0f} s"))
    for row in rows:
        if not row.ok:
            console.print(f"{row.fault} FAILED: {row.why}", markup=False, soft_wrap=True)
    if options.json is not None:
        options.json.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n")
    return 0 if all(row.ok for row in rows) else 1


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _table(rows: Sequence[Row], title: str) -> Table:
    headings = list(rows[0].ledger.cells()) if rows else []
    table = Table(title=title, caption=rows[0].ledger.CAPTION if rows else None)
    table.add_column("fault")
    table.add_column("injected")
    for heading in headings:
        table.add_column(heading, justify="right")
    table.add_column("stated figure")
    table.add_column("")
    for row in rows:
        cells = row.ledger.cells()
        numbers = (cells[heading] for heading in headings)
        table.add_row(row.fault, row.injected, *numbers, row.figure, "ok" if row.ok else "FAILED")
    return table
