"""The store on Redis or Valkey: Lua scripts behind a blocking door and an event-loop door."""

from bus.store.redis.blocking import RedisStore

__all__ = ["RedisStore"]
