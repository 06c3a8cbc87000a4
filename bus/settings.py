"""What a bus is told from outside: its arguments first, then the environment, then defaults."""

from __future__ import annotations

import re
from typing import NamedTuple

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from bus.errors import InvalidLog, InvalidSettings, InvalidTopic
from bus.topics import check_topic

__all__ = ["DEFAULT_LOG", "Limits", "check_log", "settle_namespace", "settle_url"]

DEFAULT_LOG = "main"

_NAMESPACE = re.compile(r"[A-Za-z0-9_.~@-]{1,64}")


class Limits(NamedTuple):
    """The numbers of a bus, with their defaults.

    ``max_bytes`` of one encoded event; ``cap`` events and ``ttl_s`` seconds that a log keeps; ``window_s`` in which a
    repeated id is a duplicate; ``deadline_s`` until a publish gives up; ``lease_s`` that a silent worker keeps its jobs.
    """

    max_bytes: int = 256 * 1024
    cap: int = 50_000
    ttl_s: float = 24 * 3600
    window_s: float = 300
    deadline_s: float = 5
    lease_s: float = 7

    def checked(self) -> Limits:
        """Itself, if every number makes sense; otherwise :class:`~bus.errors.InvalidSettings`."""
        for name, value in self._asdict().items():
            if name.endswith("_s"):
                if isinstance(value, bool) or not isinstance(value, int | float) or not 0.001 <= value <= 1e10:
                    raise InvalidSettings(f"{name} must be a number of seconds, 0.001 or more")
            elif isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1e10:
                raise InvalidSettings(f"{name} must be a whole number, 1 or more")
        return self


class _Environment(BaseSettings):
    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore")

    url: SecretStr = Field(default=SecretStr("memory://"), validation_alias=AliasChoices("BUS_URL", "REDIS_URL"))
    namespace: str = Field(default="callboard", validation_alias="BUS_NAMESPACE")


def settle_url(url: str | None) -> str:
    """The URL to use: the given one, else ``BUS_URL``, else ``REDIS_URL``, else memory."""
    if url is None:
        try:
            return _Environment().url.get_secret_value()
        except ValidationError:  # pragma: no cover - an environment variable is always text
            raise InvalidSettings("BUS_URL or REDIS_URL in the environment cannot be read") from None
    if not isinstance(url, str) or "://" not in url:
        raise InvalidSettings("the bus URL must begin with memory://, redis://, rediss:// or unix://")
    return url


def settle_namespace(namespace: str | None) -> str:
    """The namespace to use: the given one, else ``BUS_NAMESPACE``, else ``callboard``.

    Raises :class:`~bus.errors.InvalidSettings` for one that cannot be.
    """
    if namespace is None:
        namespace = _Environment().namespace
    if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace):
        raise InvalidSettings("a namespace has 1 to 64 characters of a-z A-Z 0-9 _ . ~ @ -")
    return namespace


def check_log(log: str | None) -> str:
    """A log's name (``None`` is the default one), which has the grammar of a topic."""
    if log is None:
        return DEFAULT_LOG
    try:
        return check_topic(log)
    except InvalidTopic as error:
        raise InvalidLog(str(log), error.why.replace("topic", "log name")) from None
