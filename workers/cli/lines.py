"""Events as lines: for people, and for programs."""

from __future__ import annotations

import json

from bus import Delivery, Gap
from bus.topics import WORKER
from workers.cli.notices import notice_parts
from workers.cli.terminal import printable

__all__ = ["HumanLines", "JsonLines", "Lines"]


class JsonLines:
    """One JSON object a line: the envelope with its position. ASCII, so that no terminal is steered by it."""

    def event(self, delivery: Delivery) -> str:
        """One that passes."""
        facts = {"position": str(delivery.position), **delivery.envelope.model_dump(mode="json", exclude_none=True)}
        # As a list, and also where there are none: on the wire they are one text.
        facts["topics"] = list(delivery.envelope.topics)
        if delivery.ephemeral:
            facts["ephemeral"] = True
        return json.dumps(facts)

    def gap(self, gap: Gap) -> str:
        """A hole that cannot be repaired."""
        return json.dumps({"gap": {"first": gap.first, "last": gap.last, "reason": gap.reason}})


class HumanLines:
    """Time, number, type, topics and data on one line; what workers tell, in words. Coloured only on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - slow to import, and --json does without

        self._console = Console(highlight=False, soft_wrap=True)

    def event(self, delivery: Delivery) -> str:
        """One that passes."""
        envelope = delivery.envelope
        if envelope.type.startswith(f"{WORKER}."):
            return self.painted((envelope.time[11:23], "dim"), *notice_parts(envelope.type, envelope.data))
        data = json.dumps(envelope.data, ensure_ascii=False, separators=(", ", ": "))
        return self.painted(
            (envelope.time[11:23], "dim"),
            ("live" if delivery.ephemeral else f"#{delivery.position.seq}", "bold cyan"),
            (envelope.type, "bold"),
            (" ".join(envelope.topics), "green"),
            (data, ""),
        )

    def gap(self, gap: Gap) -> str:
        """A hole that cannot be repaired."""
        if gap.reason == "trimmed":
            return self.painted((f"gap {gap.first}..{gap.last} trimmed", "bold red"))
        return self.painted(
            (f"gap from {gap.first} on ({gap.reason}): the log begins anew, for the server lost data", "bold red")
        )

    def painted(self, *parts: tuple[str, str]) -> str:
        """Parts with their styles. Not as markup: brackets in an event are just brackets."""
        from rich.text import Text  # noqa: PLC0415 - as above

        line = Text("  ").join(Text(printable(text), style) for text, style in parts)
        if not self._console.is_terminal:
            return line.plain
        with self._console.capture() as captured:
            self._console.print(line, end="")
        return captured.get()


Lines = JsonLines | HumanLines
