"""The test kit: run an app's work in a test, move its time, look at what it did, and break things on purpose.

An app has its kit as :attr:`workers.App.testing`; :mod:`workers.pytest_plugin` makes fixtures of it. What it promises stands
in :mod:`workers.kit`. Production code never imports this package.
"""

from workers.testing.appkit import AppKit, world

__all__ = ["AppKit", "world"]
