"""4. What fails is tried again; what fails for good is kept, with every attempt, and nothing is dropped.

A handler that raises is tried again after a while, as often as its options say. Then its event goes to the *dead letters*,
where people look at it, mend what was wrong and have it replayed: ``callboard dead list``, ``show``, ``replay``.
"""

import pytest

from bus import Bus, Event
from workers import App
from workers.deadletters import DeadLetters
from workers.kit import Kit


class Ordered(Event, type="story.ordered", version=1):
    dish: str


bus = Bus()
app = App(bus)
menu = {"soup"}


@app.on(Ordered, max_retries=1, min_backoff=1, max_backoff=1)  # milliseconds
def cook(event: Ordered) -> None:
    if event.dish not in menu:
        raise LookupError(f"no {event.dish} today")


@pytest.mark.callboard("memory", "redis")
def test_an_order_that_cannot_be_cooked_is_kept_and_cooked_tomorrow(callboard: Kit) -> None:
    menu.discard("cake")
    bus.publish_sync(Ordered(dish="soup"))
    bus.publish_sync(Ordered(dish="cake"))
    while bus.store.dead_count() == 0:
        callboard.drain_sync(raise_errors=False)  # otherwise a handler's error is the test's
    assert [ran.outcome for ran in callboard.ran] == ["done", "retry", "dead"]

    letters = DeadLetters(bus)
    (letter,) = letters.find()
    assert [attempt.message for attempt in letter.attempts] == ["no cake today"] * 2

    menu.add("cake")
    assert list(letters.replay([letter.job])) == [(letter.job, True)]
    callboard.drain_sync()
    callboard.assert_handled(cook, Ordered(dish="cake"))
