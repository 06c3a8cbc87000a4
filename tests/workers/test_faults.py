"""The faults of ``python -m tests.faults``, in their quick forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults import queue, signals
from tests.faults.harness import Fault, try_out
from tests.servers import Server

FAULTS = (*queue.FAULTS, *(fault for fault in signals.FAULTS if fault.name in signals.QUICK))


@pytest.mark.fault
@pytest.mark.timeout(150)
@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_what_is_promised_is_kept_when_things_break(fault: Fault, start_server: Callable[..., Server]) -> None:
    row, failure = try_out(fault, quick=True, start_server=start_server)

    if failure is not None:
        raise failure
    assert row.ok
