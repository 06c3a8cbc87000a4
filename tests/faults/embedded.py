"""A worker inside somebody's own program: ``python -m tests.faults.embedded GRACE_S``. It tells what a stop leaves behind."""

from __future__ import annotations

import signal
import sys
import threading

import dramatiq

from tests import leaks


def main(grace_s: float) -> int:
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    threads, sockets = leaks.threads_now(), leaks.sockets_now()
    from tests.faults.signal_app import app  # noqa: PLC0415 - after the look

    worker = dramatiq.Worker(app.broker, worker_threads=4)
    worker.start()
    print("ready: embedded", flush=True)
    asked.wait()
    worker.stop(timeout=int(grace_s * 1000))
    app.broker.close()
    app.bus.close_sync()
    left = leaks.threads_left(threads) + leaks.sockets_left(sockets)
    print(f"left: {'; '.join(left) or 'nothing'}", flush=True)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
