"""Mailboxes: what waits, in which order, and where to begin for it to come again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus import Delivery, Envelope, Position
from bus.mailbox import QUEUE, QUEUE_BYTES, Found, LatestMailbox, Mailbox


def at(seq: int) -> Position:
    return Position("e", seq, f"t{seq}")


def found(seq: int, key: str | None = None, size: int = 1) -> Found:
    envelope = Envelope(
        specversion="1.0",
        id=str(seq),
        type="t",
        source="/s",
        time="2026-01-01T00:00:00.000Z",
        datacontenttype="application/json",
        key=key,
        data={"n": seq},
    )
    return Found(at(seq - 1), Delivery(at(seq), envelope, envelope.data), size)


def seqs(mailbox: Mailbox) -> list[int]:
    taken = []
    while mailbox:
        item = mailbox.take()
        assert isinstance(item, Delivery)
        taken.append(item.position.seq)
    return taken


def test_first_in_first_out_and_the_place_before_the_first() -> None:
    mailbox = Mailbox()
    for seq in (3, 4, 5):
        mailbox.put(found(seq))

    assert mailbox.before == at(2)
    assert seqs(mailbox) == [3, 4, 5]
    assert mailbox.before is None


def test_it_is_full_by_number() -> None:
    mailbox = Mailbox()
    for seq in range(QUEUE):
        assert mailbox.fits(found(seq))
        mailbox.put(found(seq))
    assert not mailbox.fits(found(QUEUE))
    mailbox.take()
    assert mailbox.fits(found(QUEUE))


def test_it_is_full_by_bytes_but_one_always_fits() -> None:
    for mailbox in (Mailbox(), LatestMailbox(None)):
        assert mailbox.fits(found(1, size=2 * QUEUE_BYTES))
        mailbox.put(found(1, size=QUEUE_BYTES - 1))
        assert mailbox.fits(found(2, size=1))
        assert not mailbox.fits(found(2, size=2))
        mailbox.clear()
        assert mailbox.fits(found(2, size=QUEUE_BYTES))


def test_what_takes_the_place_of_another_fits_into_a_full_one() -> None:
    mailbox = LatestMailbox(None)
    for seq in range(QUEUE):
        mailbox.put(found(seq, str(seq)))

    assert not mailbox.fits(found(QUEUE, "new"))
    assert not mailbox.fits(found(QUEUE))
    assert mailbox.fits(found(QUEUE, "7"))


@given(st.lists(st.sampled_from(["a", "b", "c", None, "take"]), max_size=40))
def test_latest_holds_the_newest_of_each_key_and_all_without_one(steps: list[str | None]) -> None:
    mailbox, model = LatestMailbox(None), list[tuple[int, str | None]]()
    for seq, step in enumerate(steps, 1):
        if step == "take":
            if model:
                item = mailbox.take()
                assert isinstance(item, Delivery)
                assert item.position.seq == model.pop(0)[0]
            continue
        model = [(one, key) for one, key in model if key is None or key != step] + [(seq, step)]
        mailbox.put(found(seq, step))

        assert len(mailbox) == len(model)
        assert mailbox.before == at(model[0][0] - 1)

    assert seqs(mailbox) == [seq for seq, _ in model]


def test_latest_by_a_field_of_the_data() -> None:
    mailbox = LatestMailbox("n")
    for seq in (1, 2, 1):
        mailbox.put(found(seq))
    assert seqs(mailbox) == [2, 1]
