"""The company: an app whose agents answer each other's events. Read it as an example.

::

    prompt book ──> CueCalled ──> actor ──> LineSpoken ──┬──> prompter ──> LineWhispered ──> actor ──> LineSpoken
       (main)           │                                └──> critic (progress, in the end ReviewWritten)
                        └──> stagehand (fails once, then it works; and one trapdoor that never does)
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from bus import Bus, Event, Receipt
from workers import App, Context
from workers.demo.tally import Tally
from workers.middleware import LaneRetries

__all__ = ["AGENTS", "PROMPT_BOOK", "Call", "CueCalled", "address", "make_app"]

AGENTS = ("bernardo", "francisco", "horatio", "hamlet", "gertrude", "stagehand", "prompter", "critic")
"""In the order of their appearance on the screen."""


class CueCalled(Event, type="demo.cue.called"):
    """The stage manager wants an agent to act."""

    agent_id: str
    number: int
    text: str


class LineSpoken(Event, type="demo.line.spoken"):
    """An actor spoke; a line that breaks off ends in an ellipsis."""

    agent_id: str
    number: int
    text: str


class LineWhispered(Event, type="demo.line.whispered"):
    """The prompter helps an actor out."""

    agent_id: str
    number: int
    text: str


class EffectDone(Event, type="demo.effect.done"):
    """The stagehand made thunder, or light."""

    agent_id: str
    text: str


class ReviewWritten(Event, type="demo.review.written"):
    """The critic's verdict."""

    agent_id: str
    text: str
    stars: int


class Call(NamedTuple):
    """One entry of the prompt book: wait so many beats, then call this agent."""

    beats: float
    agent_id: str
    text: str


# Hamlet, I.i to I.iii, much abridged. Calls that follow each other at once wait in their agents' lanes.
PROMPT_BOOK = (
    Call(0, "stagehand", "dim the lights"),
    Call(1, "bernardo", "Who's there?"),
    Call(1, "francisco", "Nay, answer me: stand, and unfold yourself."),
    Call(1, "bernardo", "Long live the king!"),
    Call(0, "bernardo", "'Tis now struck twelve; get thee to bed, Francisco."),
    Call(1, "francisco", "For this relief much thanks: 'tis bitter cold, and I am …"),
    Call(1, "horatio", "Friends to this ground."),
    Call(0, "stagehand", "roll the thunder"),
    Call(1, "horatio", "Tush, tush, 'twill not appear."),
    Call(1, "stagehand", "raise the ghost through the trapdoor"),
    Call(0, "bernardo", "In the same figure, like the king that's dead."),
    Call(0, "horatio", "It harrows me with fear and wonder."),
    Call(1, "horatio", "What art thou that usurp'st this time of night?"),
    Call(1, "gertrude", "Good Hamlet, cast thy nighted colour off."),
    Call(1, "hamlet", "Ay, madam, it is …"),
    Call(0, "gertrude", "Why seems it so particular with thee?"),
    Call(1, "hamlet", "Seems, madam! nay it is; I know not 'seems.'"),
    Call(0, "hamlet", "'Tis not alone my inky cloak, good mother."),
    Call(1, "stagehand", "bring down the curtain"),
)

_FORGOTTEN = {"it is …": "common.", "I am …": "sick at heart."}
_THUNDER, _TRAPDOOR, _CURTAIN = "thunder", "trapdoor", "curtain"
_SPEAKING_BEATS = 0.9


def address(agent_id: str) -> list[str]:
    """Where an event about an agent goes: to everybody, and to whoever follows this agent."""
    return ["stage", f"agent:{agent_id}"]


class Jam(Exception):
    """The machinery of a theatre."""


def make_app(bus: Bus, tally: Tally, beat_s: float) -> App:
    """The company on this bus; ``beat_s`` is its pace in seconds."""
    app = App(bus)
    app.broker.add_middleware(tally, before=LaneRetries)  # what stands before it sees its verdict

    async def say(ctx: Context, event: Event, agent_id: str) -> Receipt:
        return tally.posted(await ctx.publish(event, topics=address(agent_id)))

    actors = [agent for agent in AGENTS if agent not in ("stagehand", "prompter", "critic")]

    @app.on(CueCalled, topics=[f"agent:{actor}" for actor in actors], key="agent_id", name="actor")
    async def act(cue: CueCalled, ctx: Context) -> None:
        await asyncio.sleep(_SPEAKING_BEATS * beat_s)
        await say(ctx, LineSpoken(agent_id=cue.agent_id, number=cue.number, text=cue.text), cue.agent_id)

    @app.on(LineWhispered, key="agent_id", name="actor.repeats")
    async def repeat(whisper: LineWhispered, ctx: Context) -> None:
        await asyncio.sleep(_SPEAKING_BEATS / 2 * beat_s)
        line = LineSpoken(agent_id=whisper.agent_id, number=whisper.number, text=whisper.text)
        await say(ctx, line, whisper.agent_id)

    @app.on(LineSpoken, name="prompter")
    async def prompt(line: LineSpoken, ctx: Context) -> None:
        for broken_off, rest in _FORGOTTEN.items():
            if line.text.endswith(broken_off):
                whisper = LineWhispered(agent_id=line.agent_id, number=line.number, text=rest)
                await say(ctx, whisper, line.agent_id)

    @app.on(
        CueCalled,
        topics="agent:stagehand",
        key="agent_id",
        name="stagehand",
        max_retries=2,
        min_backoff=int(600 * beat_s),
        max_backoff=int(1200 * beat_s),
    )
    async def work(cue: CueCalled, ctx: Context) -> None:
        await asyncio.sleep(_SPEAKING_BEATS / 2 * beat_s)
        if _TRAPDOOR in cue.text:
            raise Jam("the trapdoor is nailed shut")
        if _THUNDER in cue.text and ctx.attempt == 1:
            raise Jam("the thunder sheet slipped")
        await say(ctx, EffectDone(agent_id="stagehand", text=cue.text), "stagehand")

    @app.on(EffectDone, name="critic")
    async def review(effect: EffectDone, ctx: Context) -> None:
        if _CURTAIN not in effect.text:
            return
        for page in (1, 2, 3):
            ctx.progress(f"writing page {page} of 3")
            await asyncio.sleep(_SPEAKING_BEATS * beat_s)
        verdict = ReviewWritten(agent_id="critic", text="A ghost would have helped. The thunder was real.", stars=4)
        await say(ctx, verdict, "critic")

    return app
