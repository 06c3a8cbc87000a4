"""The boundary to redis-py: how a URL becomes a connection, and how its errors become ours.

redis-py 8 retries ten times with a 5 s timeout by default, ``from_url`` never retries, and either choice depends on how
the client was made. So nothing is left to a default here: one try, explicit timeouts; whoever may retry safely does so
above, knowing what is safe to repeat.
"""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
from redis import exceptions as errors

from bus.errors import BusUnavailable, InvalidSettings

__all__ = ["FOREIGN", "Link", "translated", "unavailable"]

ATTEMPT_S = 2.0
"""How long one command may take before the link counts as lost. Blocking reads have timeouts of their own."""

_ENCODE_HINT = "percent-encode special characters in its user and password (# is %23, / is %2F, @ is %40)"


_TLS_OPTIONS = (
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_certfile",
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_keyfile",
    "ssl_password",
)


class Link:
    """Where the server is and how to connect to it. Its repr and ``where`` never hold the user or the password."""

    __slots__ = ("options", "where")

    def __init__(self, url: str) -> None:
        options = _options(url)
        self.options: dict[str, Any] = options
        place = options.get("path") or f"{options['host']}:{options['port']}"
        self.where = f"the Redis server at {place} (database {options.get('db', 0)})"

    def __repr__(self) -> str:
        return f"<Link to {self.where}>"


def _options(url: str) -> dict[str, Any]:
    """Connection options of a URL. Errors name the part that is wrong and never quote the URL."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidSettings(
            f"the Redis URL cannot be read: its port must be a number from 0 to 65535, and {_ENCODE_HINT}"
        ) from None
    if parts.fragment:
        raise InvalidSettings(f"the Redis URL has a '#' in it: {_ENCODE_HINT}")
    if parts.scheme not in ("redis", "rediss", "unix"):
        raise InvalidSettings("the bus URL must begin with memory://, redis://, rediss:// or unix://")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    options: dict[str, Any] = {"db": _database(query.pop("db", "") or ("" if parts.scheme == "unix" else parts.path))}
    if parts.scheme == "rediss":
        options |= {name: query.pop(name) for name in _TLS_OPTIONS if name in query}
        if "ssl_check_hostname" in options:
            options["ssl_check_hostname"] = options["ssl_check_hostname"].lower() not in ("0", "false", "no")
    if query:  # not named: a password with a '?' in it would be among them
        raise InvalidSettings(
            f"the Redis URL has options that we do not know: db, and with rediss:// {', '.join(_TLS_OPTIONS)}, may stand "
            f"after its '?'. A '?' in a password is %3F"
        )
    if parts.username:
        options["username"] = unquote(parts.username)
    if parts.password:
        options["password"] = unquote(parts.password)
    if parts.scheme == "unix":
        return options | {"path": unquote(parts.path)}
    return options | {
        "host": unquote(parts.hostname or "localhost"),
        "port": port or 6379,
        "tls": parts.scheme == "rediss",
    }


def _database(text: str) -> int:
    text = text.strip("/")
    if text and not re.fullmatch(r"[0-9]{1,5}", text):
        raise InvalidSettings(
            "the database at the end of the Redis URL must be a number, as in redis://localhost:6379/0"
        )
    return int(text or 0)


class translated:  # noqa: N801 - used as contextlib's managers are, but without a generator: it surrounds every command
    """Run one exchange with the server; whatever goes wrong leaves as a :class:`~bus.errors.BusUnavailable`.

    With ``writing``, the error says whether the server refused (nothing was written) or the outcome is unknown.
    """

    __slots__ = ("_link", "_writing")

    def __init__(self, link: Link, *, writing: bool) -> None:
        self._link = link
        self._writing = writing

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FOREIGN):
            raise unavailable(self._link, error, writing=self._writing) from error


FOREIGN = (errors.RedisError, OSError, TimeoutError)
"""All that an exchange with the server may raise."""


def unavailable(link: Link, error: BaseException, *, writing: bool) -> BusUnavailable:
    """What a foreign error is to us; see :class:`translated`, of which this is the quick form for the hottest way."""
    why, refused = _explain(link, error)
    outcome: Literal["refused", "unknown"] | None = None
    if writing:
        outcome = "refused" if refused else "unknown"
    return BusUnavailable(why, outcome=outcome)


def _explain(link: Link, error: BaseException) -> tuple[str, bool]:
    """One line for a person, and whether it is certain that nothing was written."""
    where = link.where
    if _is(error, "Authentication required"):
        return f"{where} wants a password: put it into the URL, as in redis://:PASSWORD@host:port/0", True
    if isinstance(error, errors.AuthenticationError | errors.AuthenticationWrongNumberOfArgsError):
        return f"{where} refused the user or password in the URL", True
    if isinstance(error, errors.NoPermissionError):
        return f"{where} denies this user a command or key that the bus needs; see the ACL in bus/README.md", True
    if isinstance(error, errors.OutOfMemoryError) or _is(error, "OOM"):
        return f"{where} is full and takes no new events; work goes on. Raise its maxmemory or drain its queues", True
    if isinstance(error, errors.ReadOnlyError):
        return f"{where} is a read-only replica: connect to the primary", True
    if _is(error, "NOREPLICAS"):
        return f"{where} lacks replicas that it demands before it takes a write: see its min-replicas-to-write", True
    if isinstance(error, errors.BusyLoadingError):
        return f"{where} is still loading its data: try again in a moment", True
    if isinstance(error, errors.InvalidResponse) or _is(error, "Protocol Error"):
        return f"what listens at {where[20:]} does not speak the Redis protocol: check the port", True
    if _is(error, "DB index is out of range"):
        return f"{where} has no database of the number in the URL: most have 0 to 15", True
    if isinstance(error, errors.ResponseError) and "user_script:" in str(error):
        return f"{where} broke off one of our scripts: that is a defect of ours, please report it with its cause", False
    if isinstance(error, errors.ResponseError):
        return f"{where} refused a command ({type(error).__name__}); is it Redis 7.0 or newer, or Valkey?", True
    if _never_connected(error):
        return f"{where} cannot be reached: is it running, and is the URL right?", True
    return f"{where} does not answer", False


def _is(error: BaseException, prefix: str) -> bool:
    return str(error).startswith(prefix)


def _never_connected(error: BaseException) -> bool:
    """Whether the connection itself failed, so that nothing can have been written."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ConnectionRefusedError | FileNotFoundError) or "connecting to" in str(seen):
            return True
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return False


def blocking_pool(link: Link, *, size: int, timeout_s: float) -> redis.BlockingConnectionPool:
    """A pool for threads. A thread that finds all connections in use waits for one, up to the timeout."""
    options = {name: value for name, value in link.options.items() if name != "tls"}
    if "path" in options:
        options["connection_class"] = redis.UnixDomainSocketConnection
    elif link.options["tls"]:
        options["connection_class"] = redis.SSLConnection
    return redis.BlockingConnectionPool(
        max_connections=size,
        timeout=timeout_s,
        socket_timeout=timeout_s,
        socket_connect_timeout=ATTEMPT_S,
        retry=None,
        protocol=2,
        **options,
    )
