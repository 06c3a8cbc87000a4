"""The store in memory: the same promises in one process, lost when it ends."""

from bus.store.memory.store import MemoryStore

__all__ = ["MemoryStore"]
