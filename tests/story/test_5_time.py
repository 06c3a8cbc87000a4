"""5. Time is a thing that a test can move.

``delay`` (or ``at``) delays the handlers' work, never the news. In memory everything that happens by the clock follows
``travel``: delays, retries, leases, how long a log keeps its events. Thirty days take no time at all. (A server's clock is
its own: there ``travel`` refuses.)
"""

from datetime import timedelta

from bus import Bus, Event
from workers import App, Context
from workers.kit import Kit


class SignedUp(Event, type="story.signed-up", version=1):
    name: str


class Reminded(Event, type="story.reminded", version=1):
    name: str


bus = Bus()
app = App(bus)


@app.on(SignedUp)
async def remind_later(event: SignedUp, ctx: Context) -> None:
    await ctx.publish(Reminded(name=event.name), delay=timedelta(days=30))


@app.on(Reminded, min_backoff=3_600_000, max_backoff=3_600_000)  # milliseconds: an hour
def write_to(event: Reminded, ctx: Context) -> None:
    if ctx.attempt == 1:
        raise ConnectionError("the mail server is away")


def test_a_reminder_is_sent_after_thirty_days_and_an_hour(callboard: Kit) -> None:
    bus.publish_sync(SignedUp(name="Ada"))
    callboard.drain_sync()
    callboard.travel(days=29)
    assert callboard.drain_sync() == [], "nothing is due"

    callboard.travel(days=1)
    (failed,) = callboard.drain_sync(raise_errors=False)
    assert failed.outcome == "retry"

    callboard.travel(hours=1)
    callboard.drain_sync()
    callboard.assert_handled(write_to, Reminded(name="Ada"), times=1)
