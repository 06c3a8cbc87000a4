"""Checks of the live side: announcements, subscriptions, and the event-loop door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import cast

from bus.position import ROOT_TOKEN, Position
from bus.store.base import Announced, Appended, Confirmed, Entry, Frame, Heard, LoopStore, Page, Stale, Store, Whisper
from bus.testing.store_checks import append, batch, collected, post, whisper, write
from bus.testing.waiting import eventually

__all__ = ["LIVE_CHECKS"]

PATIENCE_S = 5.0

Subscription = AsyncGenerator[Heard]


@asynccontextmanager
async def door(store: Store) -> AsyncIterator[LoopStore]:
    """The store's door for this loop, closed twice at the end: that must be safe."""
    loop_store = store.on_loop()
    try:
        yield loop_store
    finally:
        await loop_store.close()
        await loop_store.close()


def subscribed(loop_store: LoopStore, log: str = "main") -> AbstractAsyncContextManager[Subscription]:
    return aclosing(cast("Subscription", loop_store.subscribe(log)))


async def confirmed(heard: Subscription) -> None:
    async with asyncio.timeout(PATIENCE_S):
        first = await anext(heard)
    assert isinstance(first, Confirmed), f"before its confirmation a subscription yielded {first}"


async def frames(heard: Subscription, count: int) -> list[Frame]:
    """The next frames; another confirmation among them is allowed, nothing else."""
    found: list[Frame] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < count:
            one = await anext(heard)
            if isinstance(one, Frame):
                found.append(one)
    return found


async def check_a_subscription_is_confirmed_and_then_hears_every_append_in_order(store: Store) -> None:
    write(store, b"before")
    async with door(store) as loop_store, subscribed(loop_store) as heard:
        await confirmed(heard)
        append(store, batch(post(b"a"), post(b"b")))
        append(store, batch(post(bytes(range(256)) * 100)))
        append(store, batch(post(b"")))
        found = await frames(heard, 4)

    kept = store.read("main", "unused", 1, 10)
    assert [frame.entry for frame in found] == kept.entries, "live frames are not what the log holds after the start"
    assert all(frame.epoch == kept.epoch and not frame.ephemeral for frame in found), f"wrong marks on {found}"


async def check_a_subscription_hears_its_own_log_only_and_no_duplicates(store: Store) -> None:
    async with door(store) as loop_store, subscribed(loop_store, "one") as heard:
        await confirmed(heard)
        same = post(b"same")
        append(store, batch(same, same, log="one"))
        append(store, batch(post(b"elsewhere"), log="two"))
        append(store, batch(same, post(b"last"), log="one"))
        found = await frames(heard, 2)

    said = [frame.entry.body for frame in found]
    assert said == [b"same", b"last"], f"the listener of one log heard {said}"


async def check_stale_batches_are_not_heard(store: Store) -> None:
    async with door(store) as loop_store, subscribed(loop_store) as heard:
        await confirmed(heard)
        store.append(batch(post(b"stale"), version=7))
        append(store, batch(post(b"fresh")))
        (found,) = await frames(heard, 1)

    assert found.entry.body == b"fresh", f"a listener heard {found.entry.body!r}, which was not written"


async def check_every_subscription_hears_everything(store: Store) -> None:
    async with door(store) as loop_store, subscribed(loop_store) as one, subscribed(loop_store) as two:
        await confirmed(one)
        await confirmed(two)
        write(store, *(b"%d" % n for n in range(50)))
        heard = [[frame.entry.body for frame in await frames(each, 50)] for each in (one, two)]

    assert heard == [[b"%d" % n for n in range(50)]] * 2, "two listeners did not hear the same"


async def check_an_announcement_is_heard_and_leaves_no_number(store: Store) -> None:
    (first,) = write(store, b"first")
    async with door(store) as loop_store, subscribed(loop_store) as heard:
        await confirmed(heard)
        here = whisper(store, b"whi\nsper\x00\xff", topics="agent:a agent:b")
        there = await loop_store.announce("main", "unused", [Whisper("global", b"")])
        (second,) = write(store, b"second")
        found = await frames(heard, 3)

    top = first.position
    assert isinstance(there, Announced), f"nobody closed the log, and the answer is {there}"
    assert (here, there.position) == (top, top), f"announced after {first}, and told {here} and {there}"
    expected = Frame(
        "e1", Entry(1, first.position.token, ROOT_TOKEN, "agent:a agent:b", b"whi\nsper\x00\xff"), ephemeral=True
    )
    assert found[0] == expected, f"the announcement was heard as {found[0]}"
    assert [frame.ephemeral for frame in found] == [True, True, False], f"wrong marks on {found}"
    assert second.position.seq == 2, f"an announcement used up a number: the next event has {second.position.seq}"
    kept = [entry.body for entry in store.read("main", "unused", 0, 10).entries]
    assert kept == [b"first", b"second"], f"an announcement was recorded: {kept}"


async def check_an_announcement_says_how_many_heard_it(store: Store) -> None:
    said = [Whisper("global", b"one"), Whisper("nobody:listens:here", b"two")]
    async with door(store) as loop_store, subscribed(loop_store, "elsewhere") as other:
        await confirmed(other)
        nobody = await heard_by(store, loop_store, said)
        async with subscribed(loop_store) as one:
            await confirmed(one)
            alone = await heard_by(store, loop_store, said)
    gone = await eventually(lambda: nobody_hears(store), "the announcements to find nobody once the listener has left")

    assert nobody == {0}, f"nobody listened, and it was heard by {nobody}"
    assert min(alone) > 0, f"somebody listened, and it was heard by {alone}"
    assert gone, "nobody listens any more"


async def heard_by(store: Store, loop_store: LoopStore, said: list[Whisper]) -> set[int]:
    """By how many an announcement was heard, through either door."""
    answers = [store.announce("main", "e", said), await loop_store.announce("main", "e", said)]
    return {answer.heard for answer in answers if isinstance(answer, Announced)}


def nobody_hears(store: Store) -> bool:
    """Whether an announcement finds nobody."""
    answer = store.announce("main", "e", [Whisper("global", b"")])
    return isinstance(answer, Announced) and answer.heard == 0


async def check_an_announcement_on_an_empty_log_gives_it_its_epoch(store: Store) -> None:
    position = whisper(store, epoch="told")
    (later,) = append(store, batch(post(), epoch="written"))

    assert position == Position("told", 0, ROOT_TOKEN), f"announced on an empty log, and told {position}"
    assert (later.position.epoch, later.position.seq) == ("told", 1), (
        f"the epoch that was announced did not stay: {later}"
    )


async def check_a_subscription_does_not_choose_the_epoch(store: Store) -> None:
    async with door(store) as loop_store, subscribed(loop_store) as heard:
        await confirmed(heard)
        (first,) = append(store, batch(post(), epoch="offered"))
        (frame,) = await frames(heard, 1)

    assert (first.position.epoch, frame.epoch) == ("offered", "offered"), (
        f"the epoch is {first.position.epoch}, {frame.epoch}"
    )


async def check_both_doors_write_one_log(store: Store) -> None:
    version = store.bind({"a": b"1"})
    known, other = post(b"known"), post(b"other")
    async with door(store) as loop_store:
        one = await loop_store.append(batch(known, version=version))
        append(store, batch(other, version=version))
        again = await loop_store.append(batch(known))
        stale = await loop_store.append(batch(post(b"stale")))
        await loop_store.append(batch(post(b"third"), version=version))
        page = await loop_store.read("main", "unused", 1, 10)

    assert one == [Appended(Position("e1", 1, known.token), duplicate=False)], f"the loop's append was answered {one}"
    assert again == [Appended(Position("e1", 1, known.token), duplicate=True)], f"its repeat was answered {again}"
    assert stale == Stale(version, {"a": b"1"}), f"a stale batch was answered {stale}"
    assert isinstance(page, Page), "a page is a page through either door"
    assert page == store.read("main", "unused", 1, 10), "the two doors read different logs"
    assert [entry.body for entry in page.entries] == [b"other", b"third"], f"the log holds {page}"


async def check_a_closed_store_can_be_opened_again(store: Store) -> None:
    write(store, b"a")
    store.close()
    store.close()
    store.open()
    store.open()

    assert [entry.body for entry in store.read("main", "unused", 0, 10).entries] == [b"a"], "closing lost an event"


LIVE_CHECKS = collected(globals())
