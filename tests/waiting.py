"""Waiting for a condition that has a description; it lives in :mod:`bus.testing`, where everybody's tests find it."""

from bus.testing.waiting import NeverHappened, eventually, wait_until

__all__ = ["NeverHappened", "eventually", "wait_until"]
