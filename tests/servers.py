"""Real servers for our tests; they live in :mod:`bus.testing`, where everybody's tests find them."""

from bus.testing.servers import LAUNCHER, Server, ServerBinary, ServerNotFound, find_binary, free_port

__all__ = ["LAUNCHER", "Server", "ServerBinary", "ServerNotFound", "find_binary", "free_port"]
