"""6. A listener resumes where it stopped, and is told where something is missing.

Each delivery has a *position*. Kept, and handed back as ``after=``, it continues there: what was published meanwhile comes
first, then what is new, with nothing missing and nothing twice. A log keeps so many events for so long; whoever comes back
too late gets a ``Gap`` before the next event, never silence.
"""

import pytest

from bus import Bus, Delivery, Event, Gap
from workers import App
from workers.kit import Kit


class Ticked(Event, type="story.ticked", version=1):
    n: int


bus = Bus(cap=5)  # a short memory, for the sake of the story
app = App(bus)


async def tick(*numbers: int) -> None:
    for n in numbers:
        await bus.publish(Ticked(n=n))


@pytest.mark.callboard("memory", "redis")
async def test_who_comes_back_misses_nothing_or_is_told_what(callboard: Kit) -> None:
    async with bus:
        async with bus.listen() as listener:
            await tick(1)
            first = await anext(listener)
        assert isinstance(first, Delivery)

        await tick(2, 3)
        async with bus.listen(after=first.position) as listener:
            await tick(4)
            assert [_n(await anext(listener)) for _ in range(3)] == [2, 3, 4]

        await tick(5, 6, 7, 8)
        async with bus.listen(after=first.position) as listener:
            assert await anext(listener) == Gap(first=2, last=3, reason="trimmed")
            assert [_n(await anext(listener)) for _ in range(5)] == [4, 5, 6, 7, 8]


def _n(item: object) -> int | None:
    return item.event.n if isinstance(item, Delivery) and isinstance(item.event, Ticked) else None
