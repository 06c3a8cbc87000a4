"""``callboard dead``: look at what could not be done, try it again, or drop it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.progress import Progress

from workers.cli.moments import FORMS, moment
from workers.cli.options import Json, Namespace, Url, server_bus
from workers.cli.outcome import USAGE, Failed
from workers.cli.terminal import one_line, printable, tell
from workers.deadletters import Attempt, DeadLetter, DeadLetters, Wanted
from workers.errors import UnknownName

__all__ = ["dead"]

dead = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="""Work that failed for good, kept for 7 days: list it, show it, try it again, or drop it.

    Examples: `callboard dead list --handler shop.mail`, `callboard dead show 42`,
    `callboard dead replay --handler shop.mail --rate 10`, `callboard dead drop 42 43`
    """,
)

Handler = Annotated[str | None, typer.Option("--handler", metavar="NAME", help="Only this handler's.")]
Type = Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only events of this type.")]
Error = Annotated[
    str | None,
    typer.Option("--error", metavar="KIND", help="Only those whose last error is of this kind, or 'poison'."),
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="TIME", help="Only those from then on: 2026-11-23T10:00 (UTC), or 2h, 30m, 3d ago."
    ),
]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Only those from before then.")]
Jobs = Annotated[list[str] | None, typer.Argument(metavar="[JOB]...", help="The numbers that 'list' shows.")]
All = Annotated[bool, typer.Option("--all", help="All of them, where no number and no filter is given.")]

NONE = "no dead letters fit"


@dead.command("list")
def list_(
    handler: Handler = None,
    type_: Type = None,
    error: Error = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="At most so many, newest first.")] = 50,
    as_json: Json = False,
    url: Url = None,
    namespace: Namespace = None,
) -> None:
    """List dead letters, newest first: number, when (UTC), handler, event with its id and key, tries and last error."""
    wanted = _wanted(handler, type_, error, since, until)
    with _letters(url, namespace) as letters:
        found = 0
        for letter in letters.find(wanted, limit=limit + 1):
            found += 1
            if found > limit:
                tell(f"these are the newest {limit:,}, and there are more: --limit says how many to list")
                break
            print(json.dumps(_facts(letter, whole=False)) if as_json else _line(letter))
        if not found:
            _check_handler(letters, handler)
    if not found and not as_json:
        tell("there are no dead letters" if wanted == Wanted() else NONE)


@dead.command()
def show(
    job: Annotated[str, typer.Argument(metavar="JOB", help="The number that 'list' shows.")],
    as_json: Json = False,
    url: Url = None,
    namespace: Namespace = None,
) -> None:
    """Show one dead letter whole: the event with its data, and every attempt with its traceback."""
    with _letters(url, namespace) as letters:
        letter = letters.get(job)
    if letter is None:
        raise Failed(f"there is no dead letter {job[:40]!r}: 'callboard dead list' shows those that are kept")
    if as_json:
        print(json.dumps(_facts(letter, whole=True)))
    else:
        print("\n".join(_page(letter)))


@dead.command()
def replay(
    jobs: Jobs = None,
    handler: Handler = None,
    type_: Type = None,
    error: Error = None,
    since: Since = None,
    until: Until = None,
    everything: All = False,
    rate: Annotated[float | None, typer.Option("--rate", metavar="N", min=0.001, help="At most N a second.")] = None,
    as_json: Json = False,
    url: Url = None,
    namespace: Namespace = None,
) -> None:
    """Try dead letters again, with all their retries, oldest first: each goes to the tail of its agent's lane."""
    wanted = _wanted(handler, type_, error, since, until)
    with _letters(url, namespace) as letters:
        numbers = _chosen(letters, jobs, wanted, everything=everything)
        with Progress(disable=not sys.stderr.isatty(), transient=True) as bar:
            task = bar.add_task("replaying", total=len(numbers))
            gone, tried = [], 0
            try:
                for job, done in letters.replay(numbers, per_second=rate):
                    bar.advance(task)
                    tried += 1
                    if not done:
                        gone.append(job)
            except KeyboardInterrupt:
                bar.stop()
                tell(f"stopped: replayed {tried - len(gone)} of {len(numbers)}; the others are dead letters still")
                raise
    _say_what_became("replayed", len(numbers) - len(gone), gone if jobs else [], as_json=as_json)


@dead.command()
def drop(
    jobs: Jobs = None,
    handler: Handler = None,
    type_: Type = None,
    error: Error = None,
    since: Since = None,
    until: Until = None,
    everything: All = False,
    as_json: Json = False,
    url: Url = None,
    namespace: Namespace = None,
) -> None:
    """Drop dead letters for good."""
    wanted = _wanted(handler, type_, error, since, until)
    with _letters(url, namespace) as letters:
        numbers = _chosen(letters, jobs, wanted, everything=everything)
        gone = [job for job in numbers if jobs and letters.get(job) is None]
        dropped = letters.drop(numbers)
    _say_what_became("dropped", dropped, gone, as_json=as_json)


@contextmanager
def _letters(url: str | None, namespace: str | None) -> Iterator[DeadLetters]:
    bus = server_bus(url, namespace, purpose="its dead letters end with its process")
    try:
        yield DeadLetters(bus)
    finally:
        bus.close_sync()


def _wanted(handler: str | None, type_: str | None, error: str | None, since: str | None, until: str | None) -> Wanted:
    return Wanted(
        handler=handler, type=type_, error=error, since=_time("--since", since), until=_time("--until", until)
    )


def _time(option: str, text: str | None) -> datetime | None:
    time = None if text is None else moment(text)
    if text is not None and time is None:
        raise Failed(f"{option} {text[:40]!r} is no time: write {FORMS}", USAGE)
    return time


def _chosen(letters: DeadLetters, jobs: list[str] | None, wanted: Wanted, *, everything: bool) -> list[str]:
    """The numbers that are meant. Nobody means all of them by saying nothing."""
    filtered = wanted != Wanted()
    if sum((bool(jobs), filtered, everything)) > 1:
        raise Failed("name numbers, or filters, or --all, not several of these", USAGE)
    if jobs:
        return jobs
    if not filtered and not everything:
        raise Failed("say which: numbers that 'callboard dead list' shows, filters such as --handler, or --all", USAGE)
    found = [letter.job for letter in letters.find(wanted)]
    if not found:
        _check_handler(letters, wanted.handler)
    return found


def _check_handler(letters: DeadLetters, handler: str | None) -> None:
    """Nothing fits: a name that nobody knows is more likely a typo than an answer. Raises :class:`UnknownName`."""
    known = letters.handlers()
    if handler is not None and handler not in known:
        raise UnknownName(handler, known, "handler")


def _say_what_became(done: str, many: int, gone: list[str], *, as_json: bool) -> None:
    """How many were replayed or dropped. Raises :class:`Failed` where some that were named are not there."""
    if as_json:
        print(json.dumps({done: many, "missing": gone}))
    else:
        tell(f"{done} {many}" + ("" if many or gone else f": {NONE}"))
    if gone:
        which = ", ".join(job[:40] for job in gone[:5])
        raise Failed(f"there is no dead letter {which}: 'callboard dead list' shows those that are kept")


def _line(letter: DeadLetter) -> str:
    last = letter.attempts[-1] if letter.attempts else None
    why = f"{last.error}: {last.message}" if last else f"{letter.lost} workers died with it"
    what = letter.type or (letter.task or {}).get("actor") or "unreadable"
    of = letter.event.id if letter.event is not None else (letter.task or {}).get("id", "")
    when, tries = f"{letter.at:%Y-%m-%d %H:%M:%S}", f"{len(letter.attempts)}x" if last else letter.reason
    parts = [f"{letter.job:>6}", when, one_line(letter.handler), one_line(what), str(of), one_line(letter.key), tries]
    return "  ".join([*(part for part in parts if part), one_line(why)[:200]])


def _page(letter: DeadLetter) -> Iterator[str]:
    """One letter for a person; nothing in it can steer the terminal."""
    yield f"dead letter {letter.job}, {letter.reason} at {letter.at:%Y-%m-%d %H:%M:%S} UTC"
    yield f"  handler  {printable(letter.handler)} on queue {printable(letter.queue)}"
    if letter.key:
        yield f"  key      {printable(letter.key)}"
    if letter.lost:
        yield f"  lost     {letter.lost} workers died with it in their hands"
    if letter.event is not None:
        yield f"  event    {printable(letter.event.type)} {printable(letter.event.id)} of {letter.event.time}"
        yield f"  topics   {' '.join(letter.event.topics)}"
        yield f"  data     {json.dumps(letter.event.data)}"
    if letter.task is not None:
        yield f"  task     {json.dumps(letter.task)}"
    for number, attempt in enumerate(letter.attempts, 1):
        yield f"\nattempt {number} at {attempt.at:%Y-%m-%d %H:%M:%S} UTC: {printable(attempt.error)}: {printable(attempt.message)}"
        yield from (f"  {printable(line)}" for line in attempt.traceback.splitlines())


def _facts(letter: DeadLetter, *, whole: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "job": letter.job,
        "at": letter.at.isoformat(),
        "reason": letter.reason,
        "handler": letter.handler,
        "queue": letter.queue,
        "key": letter.key or None,
        "type": letter.type,
        "id": letter.event.id if letter.event is not None else (letter.task or {}).get("id"),
        "lost": letter.lost,
        "attempts": [_attempt(attempt, whole=whole) for attempt in letter.attempts],
    }
    if whole:
        facts["event"] = letter.event.model_dump(mode="json", exclude_none=True) if letter.event is not None else None
        facts["task"] = letter.task
    return facts


def _attempt(attempt: Attempt, *, whole: bool) -> dict[str, Any]:
    facts = {"at": attempt.at.isoformat(), "error": attempt.error, "message": attempt.message}
    return facts | {"traceback": attempt.traceback} if whole else facts
