"""The contract of a store as checks: what :mod:`bus.store.base` promises, one ``check_*`` function for each sentence.

For whoever writes a store of their own. A check takes an open :class:`~bus.store.base.Store` over an empty namespace,
returns where the promise holds and raises ``AssertionError`` where it does not. Some are coroutine functions, because
they use the store's event-loop door. They travel through no clock: a check that needs time to pass waits milliseconds,
on a condition with a deadline. There is no pytest in here, and production code never imports it::

    @pytest.mark.parametrize("check", [*LOG_CHECKS, *QUEUE_CHECKS])
    def test_my_store_keeps_the_contract(check):
        store = MyStore(lease_ms=CALM_LEASE_MS)
        store.open()
        run(check, store)  # asyncio.run for the coroutine functions

:data:`LEASE_CHECKS` are told apart by what they need: a store made with ``lease_ms=SHORT_LEASE_MS``.

:class:`FaultyStore` breaks the log side of any store on request.
"""

from bus.testing.end_checks import END_CHECKS
from bus.testing.faulty import FaultyStore
from bus.testing.lane_checks import LANE_CHECKS
from bus.testing.lease_checks import LEASE_CHECKS, WORKER_CHECKS
from bus.testing.ledger_checks import LEDGER_CHECKS
from bus.testing.live_checks import LIVE_CHECKS
from bus.testing.log_checks import LOG_CHECKS as NUMBER_CHECKS
from bus.testing.queue_checks import QUEUE_CHECKS as JOB_CHECKS
from bus.testing.store_checks import CALM_LEASE_MS, SHORT_LEASE_MS, Check
from bus.testing.suspect_checks import SUSPECT_CHECKS

__all__ = ["CALM_LEASE_MS", "LEASE_CHECKS", "LOG_CHECKS", "QUEUE_CHECKS", "SHORT_LEASE_MS", "Check", "FaultyStore"]

LOG_CHECKS: tuple[Check, ...] = (*NUMBER_CHECKS, *LIVE_CHECKS, *END_CHECKS)
"""The log side: numbers, ages, ids, bindings, pages, live frames, ends, times."""

QUEUE_CHECKS: tuple[Check, ...] = (*JOB_CHECKS, *LANE_CHECKS, *WORKER_CHECKS, *SUSPECT_CHECKS, *LEDGER_CHECKS)
"""The queue side: jobs, lanes, verdicts, wake-ups, leases, suspects, dead letters, the step ledger."""
