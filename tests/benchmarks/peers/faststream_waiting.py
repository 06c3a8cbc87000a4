"""FastStream on a Redis stream with a consumer group, a hundred records a read: the best of several sizes."""

from __future__ import annotations

import logging

from faststream.redis import RedisBroker, StreamSub

from tests.benchmarks.peers.waiting import Work, run


def wait(url: str, namespace: str, many: int, wait_s: float, concurrency: int) -> dict[str, float]:
    """One worker process."""

    async def main() -> dict[str, float]:
        work = Work(many, wait_s)
        broker = RedisBroker(url, logger=None, log_level=logging.ERROR)

        async with RedisBroker(url, logger=None) as producer:
            for agent, text in work.load():
                await producer.publish({"agent_id": agent, "text": text}, stream=namespace)

        sub = StreamSub(namespace, group="workers", consumer="one", last_id="0", max_records=100)

        @broker.subscriber(stream=sub, max_workers=concurrency)
        async def noted(agent_id: str, text: str) -> None:
            await work.one()

        async def working() -> None:
            await broker.start()
            await work.over()

        found = await work.measure(working())
        await broker.stop()
        return found

    return run(main)
