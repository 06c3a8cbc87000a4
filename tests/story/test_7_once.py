"""7. Doing things once, in a world where everything may happen twice.

A publisher that is not sure whether it has published does so again, under the same id: it counts once. A worker that dies
after its work and before saying so makes a handler run again. That is why a handler pays by ``ctx.once``: the step was
noted when it was done, and the second run is given its result. Here the test has a delivery come twice, on purpose.
"""

import pytest

from bus import Bus, Event
from workers import App, Context
from workers.kit import Kit


class Billed(Event, type="story.billed", version=1):
    agent_id: str
    cents: int


bus = Bus()
app = App(bus)
paid: list[int] = []


def pay(cents: int) -> str:
    paid.append(cents)
    return f"receipt {len(paid)}"


@app.on(Billed, key="agent_id")
async def settle(event: Billed, ctx: Context) -> None:
    receipt = await ctx.once("pay", lambda: pay(event.cents))
    await ctx.publish({"type": "story.paid", "receipt": receipt}, id=f"paid:{ctx.envelope.id}")


@pytest.mark.callboard("memory", "redis")
async def test_a_bill_is_paid_once_though_all_of_it_happens_twice(callboard: Kit) -> None:
    paid.clear()
    receipts = [await bus.publish(Billed(agent_id="ada", cents=500), id="bill:1") for _ in range(2)]
    callboard.duplicate_next_delivery()

    await callboard.drain()

    assert [receipt.duplicate for receipt in receipts] == [False, True]
    callboard.assert_handled(settle, times=2)
    assert paid == [500]
    assert callboard.published("story.paid") == [{"receipt": "receipt 1"}]
