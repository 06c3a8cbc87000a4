"""How a rehearsal looks: live on a terminal, or as plain lines without a control code anywhere else."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from bus import Delivery
from workers.demo.cast import AGENTS
from workers.demo.tally import Listening, Tally

__all__ = ["LiveScreen", "PlainScreen", "Screen"]

COLOURS = dict(
    zip(
        AGENTS,
        ("yellow", "green", "cyan", "magenta", "bright_magenta", "blue", "bright_black", "bright_white"),
        strict=True,
    )
)
DEEDS = {
    "demo.cue.called": "cue for {agent}: {text}",
    "demo.line.spoken": "“{text}”",
    "demo.line.whispered": "psst, {agent}: “{text}”",
    "demo.effect.done": "done: {text}",
    "demo.review.written": "{stars} of 5 stars. {text}",
}
VOICES = {"demo.cue.called": "prompt book", "demo.line.whispered": "prompter"}
"""Who speaks in events that are about somebody else."""


class Screen(Protocol):
    """Both kinds. ``show`` belongs to the event loop; ``notice`` may come from any thread."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def follow(self, tally: Tally, listeners: Sequence[Listening]) -> None:
        """What to look at."""

    def show(self, delivery: Delivery) -> None:
        """An event, as the house hears it."""

    def notice(self, who: str, text: str) -> None:
        """Something that is no event."""


class _Told:
    """Turns events into (number, who, what), where the number of an answer names what it answers."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def tell(self, delivery: Delivery) -> tuple[str, str, str]:
        envelope, data = delivery.envelope, delivery.envelope.data
        if delivery.ephemeral:
            return "live", str(data.get("handler", "")), f"… {data.get('data', '')}"
        self._numbers[envelope.id] = delivery.position.seq
        agent = str(data.get("agent_id", ""))
        what = DEEDS.get(envelope.type, envelope.type).format(
            agent=agent, text=data.get("text", ""), stars=data.get("stars", "")
        )
        cause = self._numbers.get(envelope.causationid or "")
        number = f"#{delivery.position.seq}" + (f" ↳{cause}" if cause is not None else "")
        return number, VOICES.get(envelope.type, agent), what


class PlainScreen:
    """A line for each event, on stdout."""

    def __init__(self) -> None:
        self._told = _Told()
        self._began = time.monotonic()
        self._unread = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to put back."""

    def follow(self, tally: Tally, listeners: Sequence[Listening]) -> None:
        """The numbers come with the ledger."""

    def show(self, delivery: Delivery) -> None:
        """Print it."""
        self._line(*self._told.tell(delivery))

    def notice(self, who: str, text: str) -> None:
        """Print it."""
        self._line("!", who, text)

    def _line(self, number: str, who: str, what: str) -> None:
        if self._unread:
            return
        try:
            # One write: notices come from other threads.
            print(f"{time.monotonic() - self._began:5.1f}s {number:<7} {who:<11} {what}\n", end="", flush=True)  # noqa: T201
        except OSError:
            self._unread = True  # whoever read it has left; the end of the demo says what became of the output


class LiveScreen:
    """The stage on the left; the agents' lanes, the listeners and the counters on the right. What is past scrolls off."""

    def __init__(self, console: Console) -> None:
        self._told = _Told()
        self._rows = max(8, min(22, console.size.height - 4))
        self._lines: deque[Text] = deque(maxlen=self._rows)
        self._lock = threading.Lock()
        self._tally: Tally | None = None
        self._listeners: Sequence[Listening] = ()
        self._live = Live(get_renderable=self._picture, console=console, refresh_per_second=12)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def follow(self, tally: Tally, listeners: Sequence[Listening]) -> None:
        """Show these numbers, as they change."""
        self._tally, self._listeners = tally, listeners

    def show(self, delivery: Delivery) -> None:
        """Add it to the stage."""
        number, who, what = self._told.tell(delivery)
        self._line(number, who, Text(what, style="dim italic" if delivery.ephemeral or who == "prompt book" else ""))

    def notice(self, who: str, text: str) -> None:
        """Add it to the stage, in red."""
        self._line("!", who, Text(text, style="red"))

    def _line(self, number: str, who: str, what: Text) -> None:
        line = Text.assemble((f"{number:<7} ", "dim"), (f"{who:<11} ", COLOURS.get(who, "dim")), what)
        with self._lock:
            self._lines.append(line)

    def _picture(self) -> RenderableType:
        with self._lock:
            stage = Text("\n", no_wrap=True, overflow="ellipsis").join(self._lines)
        picture = Table.grid(expand=True)
        picture.add_column(ratio=3)
        picture.add_column(ratio=2)
        rest = max(4, self._rows - len(AGENTS) - 2)
        right = Group(
            Panel(self._lanes(), title="agents", border_style="dim"),
            Panel(self._numbers(), title="the account", border_style="dim", height=rest + 2),
        )
        picture.add_row(Panel(stage, title="the stage", border_style="dim", height=self._rows + 2), right)
        return picture

    def _lanes(self) -> Table:
        lanes = Table.grid(padding=(0, 1), expand=True)
        lanes.add_column(no_wrap=True)
        lanes.add_column(no_wrap=True, width=4)
        lanes.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        busy = dict(self._tally.busy) if self._tally else {}
        for agent in AGENTS:
            waiting = self._tally.waiting[agent] if self._tally else 0
            lanes.add_row(
                Text(("● " if agent in busy else "○ ") + agent, style=COLOURS[agent]),
                Text("▪" * max(0, waiting), style=COLOURS[agent]),
                Text(busy.get(agent, ""), style="dim"),
            )
        return lanes

    def _numbers(self) -> Table:
        numbers = Table.grid(padding=(0, 1), expand=True)
        numbers.add_column(no_wrap=True, ratio=1)
        numbers.add_column(justify="right")
        tally = self._tally
        if tally is not None:
            for name, number in (
                ("published", tally.published),
                ("handled", tally.handled),
                ("retried", tally.retried),
                ("dead letters", tally.dead),
            ):
                numbers.add_row(Text(name), Text(str(number)))
        for listener in self._listeners:
            numbers.add_row(Text(f"{listener.name} heard", style="dim"), Text(str(listener.delivered), style="dim"))
        return numbers
