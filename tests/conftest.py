"""What every test stands on: a real server, a namespace of its own, async tests, and a check for leaks after each.

Without a server the tests that need one are skipped at home and fail in CI (where ``CI`` is set).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import secrets
import signal
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import ExitStack
from typing import Any, Literal, cast

import hypothesis
import pytest

from tests import leaks
from tests.servers import Server, ServerNotFound, find_binary

# A shared machine may stall any one example: the timeout of the whole test is what counts. CI keeps hypothesis's own.
hypothesis.settings.register_profile("callboard", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("callboard")

_SERVER = pytest.StashKey[Server]()
_FAILED = pytest.StashKey[bool]()


# The server and the two modes.


@pytest.fixture(scope="session")
def server(pytestconfig: pytest.Config) -> Iterator[Server]:
    """One real server for the whole session, empty at the start of each test. To break one, use ``start_server``."""
    with _start() as running:
        pytestconfig.stash[_SERVER] = running
        yield running
        del pytestconfig.stash[_SERVER]


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """Start servers of this test's own, with options as :class:`bus.testing.servers.Server` takes them."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(_start(**options))


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses. A test that needs two begins the second one's name with it."""
    return f"t{secrets.token_hex(6)}"


@pytest.fixture
def redis_url(server: Server) -> str:
    """The session's server, as ``Bus(url)`` takes it."""
    return server.url


@pytest.fixture(scope="session")
def callboard_server(server: Server) -> Server:
    """The kit's own tests need no second server."""
    return server


@pytest.fixture(params=["memory", "redis"])
def mode(request: pytest.FixtureRequest) -> Literal["memory", "redis"]:
    """Which of the two stores a contract test runs on."""
    return cast("Literal['memory', 'redis']", request.param)


@pytest.fixture
def url(mode: Literal["memory", "redis"], namespace: str, request: pytest.FixtureRequest) -> str:
    """A store to run on; whoever asks for it runs in both modes."""
    return f"memory://{namespace}" if mode == "memory" else cast("str", request.getfixturevalue("redis_url"))


def pytest_configure() -> None:
    """A shell that starts us in the background has SIGINT ignored, and nohup SIGHUP; programs inherit that: ours hear both."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_report_header() -> str:
    """Say which server will run, or what becomes of the tests that need one."""
    try:
        binary = find_binary()
    except ServerNotFound as error:
        return f"server: none, tests that need one {'fail' if _in_ci() else 'are skipped'} ({error})"
    return f"server: {binary.name_and_version()} ({binary.origin})"


def _start(**options: Any) -> Server:
    try:
        return Server(**options)
    except ServerNotFound as error:
        (pytest.fail if _in_ci() else pytest.skip)(str(error))


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in {"", "0", "false"}


# Async tests.


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run ``async def`` tests, each on a loop of its own; those under ``@given`` on one for each example."""
    test, limit_s = pyfuncitem.obj, _limit_s(pyfuncitem)
    property_test = getattr(test, "hypothesis", None)
    if property_test is not None and inspect.iscoroutinefunction(property_test.inner_test):
        property_test.inner_test = _as_sync(property_test.inner_test, limit_s)
        return None  # hypothesis calls it
    if not inspect.iscoroutinefunction(test):
        return None
    _run(test, limit_s, **{name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters})
    return True


def _as_sync(test: Callable[..., Awaitable[None]], limit_s: float | None) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        _run(test, limit_s, *args, **kwargs)

    return run


def _run(test: Callable[..., Awaitable[None]], limit_s: float | None, /, *args: Any, **kwargs: Any) -> None:
    async def run_and_look() -> list[str]:
        async with asyncio.timeout(limit_s):
            await test(*args, **kwargs)
        return leaks.tasks_left()

    with asyncio.Runner(debug=False) as runner:
        left = runner.run(run_and_look())
    if left:
        pytest.fail(f"the test left behind: {'; '.join(left)}", pytrace=False)


def _limit_s(item: pytest.Item) -> float | None:
    """Less than pytest-timeout's, so that a test that hangs is cancelled, shows where it waits, and is torn down in time.

    A fifth less: pytest-timeout counts fixtures and reports too, and where it strikes in a report, the whole run ends.
    """
    marker = item.get_closest_marker("timeout")
    if marker is not None:
        timeout = marker.args[0] if marker.args else marker.kwargs.get("timeout", 0)
    else:
        timeout = item.config.getoption("timeout", None) or item.config.getini("timeout") or 0
    return float(timeout) * 0.8 or None


# Leaks.


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest, namespace: str) -> Iterator[None]:
    """Fail a test that leaves threads, sockets, connections or stray keys; a test that failed has said enough."""
    threads, sockets, connections = leaks.threads_now(), leaks.sockets_now(), _connections(request.config)

    yield

    left = leaks.threads_left(threads)
    if "server" in request.fixturenames and _SERVER in request.config.stash:
        left += _left_on(request.config.stash[_SERVER], connections, namespace)
    left += leaks.sockets_left(sockets)
    if left and not request.node.stash.get(_FAILED, False):
        pytest.fail(f"the test left behind: {'; '.join(left)}", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note who has failed already."""
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


def _connections(config: pytest.Config) -> frozenset[str]:
    if _SERVER not in config.stash:
        return frozenset()
    with config.stash[_SERVER].client() as client:
        return leaks.connections_now(client)


def _left_on(server: Server, connections: frozenset[str], namespace: str) -> list[str]:
    with server.client() as client:
        left = leaks.connections_left(client, connections) + leaks.stray_keys(client, namespace)
        leaks.clear_keys(client)
    return left
