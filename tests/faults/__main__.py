"""``python -m tests.faults <suite> ...``: each suite is a module of this folder with a ``main(arguments)``."""

from __future__ import annotations

import sys
from importlib import import_module

SUITES = {
    "queue": "workers, their server and the way between them, killed, frozen, cut and lied to",
    "live": "listeners and publishers: failover, half-open links, killed publishers, slow neighbours, comings and goings",
    "storm": "every connection killed every 5 to 50 ms while publishers publish and listeners join",
    "signals": "workers told to stop, and killed, in whatever they are in the midst of",
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in SUITES:
        print("usage: python -m tests.faults SUITE ...\n")
        print("\n".join(f"  {name:10} {what}" for name, what in SUITES.items()))
        return 2
    exit_code: int = import_module(f"tests.faults.{arguments[0]}").main(arguments[1:])
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
