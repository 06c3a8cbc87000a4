"""``python -m tests.benchmarks <suite> ...``: each suite is a module of this folder with a ``main(arguments)``."""

from __future__ import annotations

import sys
from importlib import import_module

SUITES = {
    "queue": "publishing, draining, idling: beside Dramatiq's stock RedisBroker",
    "async": "thousands of handlers that wait: beside Dramatiq's AsyncIO and other task queues",
    "live": "latency, fan-out, what a history costs: beside redis-py's pub/sub, broadcaster and FastStream",
}
MODULES = {"async": "waiting_suite"}
"""Suites whose names cannot be those of modules."""


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in SUITES:
        print("usage: python -m tests.benchmarks SUITE ...\n")
        print("\n".join(f"  {name:10} {what}" for name, what in SUITES.items()))
        return 2
    suite = import_module(f"tests.benchmarks.{MODULES.get(arguments[0], arguments[0])}")
    suite.main(arguments[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
