"""taskiq on a Redis stream, with its receiver as its command line makes it."""

from __future__ import annotations

import asyncio

from taskiq.receiver import Receiver
from taskiq_redis import RedisStreamBroker

from tests.benchmarks.peers.waiting import Work, run


def wait(url: str, namespace: str, many: int, wait_s: float, concurrency: int) -> dict[str, float]:
    """One worker process."""

    async def main() -> dict[str, float]:
        work = Work(many, wait_s)
        broker = RedisStreamBroker(url, queue_name=namespace, xread_count=concurrency)

        @broker.task
        async def noted(agent_id: str, text: str) -> None:
            await work.one()

        await broker.startup()
        for agent, text in work.load():
            await noted.kiq(agent, text)
        broker.is_worker_process = True
        receiver = Receiver(broker, max_async_tasks=concurrency, max_prefetch=concurrency)
        found = await work.measure(receiver.listen(asyncio.Event()))
        await broker.shutdown()
        return found

    return run(main)
