"""arq: polls (every 10 ms here; its own 0.5 s are dearer for it), keeps no results."""

from __future__ import annotations

from typing import Any

from arq.connections import RedisSettings, create_pool
from arq.worker import Worker, func

from tests.benchmarks.peers.waiting import Work, run


def wait(url: str, namespace: str, many: int, wait_s: float, concurrency: int) -> dict[str, float]:
    """One worker process."""

    async def main() -> dict[str, float]:
        work = Work(many, wait_s)

        async def noted(_: dict[Any, Any], agent_id: str, text: str) -> None:
            await work.one()

        settings = RedisSettings.from_dsn(url)
        pool = await create_pool(settings, default_queue_name=namespace)
        for agent, text in work.load():
            await pool.enqueue_job("noted", agent, text)
        worker = Worker(
            [func(noted, name="noted")],
            queue_name=namespace,
            redis_settings=settings,
            max_jobs=concurrency,
            poll_delay=0.01,
            keep_result=0,
            handle_signals=False,
        )
        found = await work.measure(worker.async_run())
        await pool.aclose()
        return found

    return run(main)
