"""``callboard publish``: events from the command line, from a file of JSON Lines, or from a pipe."""

from __future__ import annotations

import json
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from io import FileIO
from os import fstat
from typing import Annotated, Any

import typer

from bus import Bus, BusError, BusUnavailable, Publication, Receipt
from bus.events import check_type
from workers.cli.form import Form, UnfitEvent, read_fields, read_line
from workers.cli.options import Json, Log, Namespace, Url, server_bus
from workers.cli.outcome import USAGE, Failed
from workers.cli.terminal import one_line, tell

__all__ = ["publish"]

BATCH = 200
"""Lines in one round trip."""
CHUNK_BYTES = 64 * 1024
LONGEST_LINE_BYTES = 4 << 20

STDIN = "-"


def publish(
    type: Annotated[
        str | None,
        typer.Argument(metavar="TYPE", help="The event's type, as in agent.post.created; '-' reads lines from a pipe."),
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FIELD=VALUE",
            help="Its data. A VALUE that is a JSON number, true, false, null, object or array is taken as that, "
            "anything else as text; FIELD:=JSON takes any JSON.",
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", metavar="PATH", help="Publish each line of this file, a JSON object; '-' is a pipe."),
    ] = None,
    topics: Annotated[
        list[str] | None,
        typer.Option("--topic", metavar="TOPIC", help="Where to (global); repeatable. {FIELD} stands for a field."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="FIELD", help="Events with the same value there are handled one at a time."),
    ] = None,
    id: Annotated[
        str | None,
        typer.Option(
            "--id", metavar="FIELD", help="The value there is the event's id: published again, it counts once."
        ),
    ] = None,
    line_type: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="The type of lines that have no 'type' of their own.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Report lines that cannot be published, and go on with the rest.")
    ] = False,
    log: Log = None,
    as_json: Json = False,
    url: Url = None,
    namespace: Namespace = None,
) -> None:
    """Publish an event, or every line of a file, in order.

    A line is a JSON object: its "type", and the data beside it. At the first line that cannot be published it stops;
    the lines before that one stay published.

    For example:

        callboard publish agent.post.created agent_id=a1 text="hi"

        callboard publish --file play.jsonl --topic global --topic 'agent:{agent_id}' --key agent_id
    """
    bus = server_bus(url, namespace, purpose="an event published from here would reach nobody")
    form = Form(tuple(topics or ("global",)), key=key, id=id, log=log)
    desk = _Desk(bus, as_json=as_json)
    source = _source(type, fields, file)
    try:
        if source is None:
            desk.send([form.publication({**read_fields(fields or ()), "type": check_type(type)})])
        else:
            letters = _Lines(desk, form, source, line_type and check_type(line_type), skip_bad=skip_bad)
            letters.publish(required=type is None and file is None)
    except UnfitEvent as error:
        raise Failed(str(error), USAGE) from None
    finally:
        bus.close_sync()
        if key is not None and desk.published and not form.key_was_seen:
            tell(f"warning: no event had the field {one_line(key)!r} that --key names, so none of them waits in line")
    desk.close()


def _source(type: str | None, fields: Sequence[str] | None, file: str | None) -> str | None:
    """Which file to read; ``None`` for an event in the arguments."""
    if type == STDIN and not fields and file in (None, STDIN):
        return STDIN
    if type is not None and file is not None:
        raise Failed("give either an event or --file; the type of lines without one is --type", USAGE)
    if type is not None:
        return None
    if file is None and sys.stdin.isatty():
        raise _nothing()
    return file or STDIN


def _nothing() -> Failed:
    return Failed(
        "there is nothing to publish: name a type and its fields, as in "
        "'callboard publish agent.post.created agent_id=a1', or a file with --file",
        USAGE,
    )


class _Desk:
    """Publishes, prints the receipts and counts them."""

    def __init__(self, bus: Bus, *, as_json: bool) -> None:
        self.published = 0
        self.duplicates = 0
        self.skipped = 0
        self.jobs = 0
        self._bus = bus
        self._as_json = as_json

    def send(self, publications: Sequence[Publication]) -> None:
        """Publish these in order, in one round trip; where one is unfit, none of them."""
        for receipt in self._bus.publish_many_sync(publications):
            self.duplicates += receipt.duplicate
            self.published += not receipt.duplicate
            self.jobs += receipt.jobs
            if self._as_json:
                print(_as_json(receipt))
        sys.stdout.flush()

    def close(self) -> None:
        """The closing line."""
        skipped = f", {_counted(self.skipped, 'line')} skipped" if self.skipped else ""
        tell(f"published {_counted(self.published, 'event')}, {_counted(self.duplicates, 'duplicate')}{skipped}")
        if self.published and not self.jobs:
            tell(
                "no handler is bound to that, so nobody works on it (an app's handlers are bound when a worker of it starts)"
            )


def _as_json(receipt: Receipt) -> str:
    return json.dumps({**receipt._asdict(), "position": str(receipt.position)})


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


class _Lines:
    """Publishes the lines of a file in batches; of a pipe, whatever has arrived, so that nothing waits for more."""

    def __init__(self, desk: _Desk, form: Form, source: str, line_type: str | None, *, skip_bad: bool) -> None:
        self._desk = desk
        self._form = form
        self._source = source
        self._name = "standard input" if source == STDIN else source
        self._line_type = line_type
        self._skip_bad = skip_bad
        self._batch: list[tuple[int, Publication]] = []

    def publish(self, *, required: bool) -> None:
        """All of them. ``required``: nobody asked for an empty pipe."""
        number = 0
        with ExitStack() as stack:
            file, size = self._open(stack)
            advance = _progress(size, self._name, stack)
            for lines in self._chunks(file):
                for line in lines:
                    number += 1
                    self._take(number, line)
                    if len(self._batch) >= BATCH:
                        self._flush()
                if size is None:
                    self._flush()
                advance(file.tell() if size is not None else 0)
            self._flush()
        if required and not number:
            raise _nothing()

    def _open(self, stack: ExitStack) -> tuple[FileIO, int | None]:
        """The file, unbuffered, and its size; no size for what is no regular file."""
        try:
            file = FileIO(sys.stdin.fileno(), closefd=False) if self._source == STDIN else FileIO(self._source)
            facts = fstat(stack.enter_context(file).fileno())
        except OSError as error:
            raise self._unreadable(error) from None
        return file, facts.st_size if stat.S_ISREG(facts.st_mode) else None

    def _chunks(self, file: FileIO) -> Iterator[list[bytes]]:
        """Whole lines as they arrive."""
        rest = b""
        while True:
            try:
                read = file.read(CHUNK_BYTES) or b""
            except OSError as error:
                raise self._unreadable(error) from None
            *lines, rest = (rest + read).split(b"\n")
            if not read and rest:
                lines.append(rest)
            yield lines
            if not read:
                return
            if len(rest) > LONGEST_LINE_BYTES:
                raise Failed(f"{self._name} has a line of over {LONGEST_LINE_BYTES:,} bytes: is it JSON Lines?")

    def _unreadable(self, error: OSError) -> Failed:
        return Failed(f"{self._name} cannot be read: {error.strerror or error}{self._so_far()}")

    def _take(self, number: int, line: bytes) -> None:
        if not line.strip():
            return
        try:
            self._batch.append((number, self._form.publication(read_line(line, self._line_type))))
        except (UnfitEvent, BusError) as error:
            self._flush()
            self._bad(number, error)

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        if not batch:
            return
        try:
            self._desk.send([publication for _, publication in batch])
        except BusUnavailable as error:
            raise self._cut_off(batch[0][0], error) from None
        except BusError:
            # One of them is unfit, so none was published: find out which.
            for number, publication in batch:
                self._send_one(number, publication)

    def _send_one(self, number: int, publication: Publication) -> None:
        try:
            self._desk.send([publication])
        except BusUnavailable as error:
            raise self._cut_off(number, error) from None
        except BusError as error:
            self._bad(number, error)

    def _bad(self, number: int, error: Exception) -> None:
        what = f"{self._name}, line {number}: {error}"
        if not self._skip_bad:
            raise Failed(f"{what}{self._so_far()}; correct it, or leave such lines out with --skip-bad")
        self._desk.skipped += 1
        tell(f"skipped: {one_line(what)}")

    def _cut_off(self, number: int, error: BusUnavailable) -> Failed:
        return Failed(f"{error} ({self._name}, line {number}{self._so_far()})")

    def _so_far(self) -> str:
        done = self._desk.published + self._desk.duplicates
        if done == 0:
            return ""
        return "; the event before it is published" if done == 1 else f"; the {done} events before it are published"


def _progress(size: int | None, name: str, stack: ExitStack) -> Callable[[int], Any]:
    """A bar on stderr while a file is read, and only for a person: call it with how far the reading is."""
    if size is None or not sys.stderr.isatty():
        return lambda _: None
    from rich.console import Console  # noqa: PLC0415 - slow to import, and needed for a person only
    from rich.markup import escape  # noqa: PLC0415 - as above
    from rich.progress import Progress  # noqa: PLC0415 - as above

    bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
    task = bar.add_task(escape(one_line(name)), total=size)
    return lambda position: bar.update(task, completed=position)
