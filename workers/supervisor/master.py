"""The master's loop: one thread, which rests until a signal, a child or a time calls."""

from __future__ import annotations

import logging
import os
import selectors
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from workers.supervisor.child import Child, Command
from workers.supervisor.fork import END_S as FORKS_END_S
from workers.supervisor.hangup import Hangup
from workers.supervisor.slot import Slot

__all__ = ["Supervisor"]

SAME_SIGNAL_S = 0.5
"""Runners signal a process group and its members; what comes so soon is the same wish, not a second one."""
MOST_CRASHES = 3
"""Deaths in a row before any child was ever ready, after which nobody hopes any more."""
EXIT_FAILURE, EXIT_USAGE, EXIT_BOOT = 1, 2, 3
STALE_S = 10.0
"""What a child told of its health counts for so long."""

log = logging.getLogger("callboard.supervisor")


class Supervisor:
    """Keeps ``processes`` children of ``command`` running until it is asked to stop. Made and run on the main thread.

    ``limit_s`` is how long a child may take from SIGTERM to its end; then it is killed. With ``patient`` a child that
    cannot boot ends nothing: the next :meth:`reload` tries again.
    """

    def __init__(self, command: Command, processes: int, *, limit_s: float, patient: bool = False) -> None:
        self._command = command
        self._limit_s = limit_s
        self._patient = patient
        self._slots = [Slot(number) for number in range(1, processes + 1)]
        self._forks: list[Slot] = []
        self._retired: list[Child] = []  # forks of older code, on their way out
        self._generation = 0
        self._forks_of = -1
        self._given_up = -1  # the generation that could not boot
        self._complete = False  # whether all have been ready once
        self._crashes = 0
        self._stopping_since: float | None = None
        self._exit_code = 0
        self._hangup = Hangup()
        self._wishes, self._wish = os.pipe()
        os.set_blocking(self._wishes, False)
        os.set_blocking(self._wish, False)

    # -- from any thread -----------------------------------------------------------------------------------------------

    def reload(self) -> None:
        """Replace all children by fresh ones, one after another. Safe from any thread, and while one is under way."""
        self._ask(signal.SIGHUP)

    def stop(self) -> None:
        """As SIGTERM. Safe from any thread."""
        self._ask(signal.SIGTERM)

    def _ask(self, number: signal.Signals) -> None:
        try:
            os.write(self._wish, bytes([number]))  # as signal.set_wakeup_fd writes them
        except OSError:  # full: the loop has enough to do; or closed: it is over
            return

    def children(self) -> list[dict[str, Any]]:
        """How each worker is doing: ``worker`` (its number), ``pid``, ``booted``, ``ready``, and ``health`` as it last told. Safe from any thread."""
        return [_told(slot.number, slot.child) for slot in self._slots]

    # -- the loop ------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Supervise until asked to stop, or until it makes no sense; returns the exit code."""
        with self._signals():
            try:
                while not self._over():
                    self._tend()
                    self._rest()
                    self._reap()
                return self._exit_code
            finally:
                for child in self._alive():
                    child.kill()
                for child in self._alive():
                    child.close()

    def close(self) -> None:
        """Free what it holds, after :meth:`run`. Safe twice."""
        for descriptor in (self._wishes, self._wish):
            if descriptor >= 0:
                os.close(descriptor)
        self._wishes = self._wish = -1

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Every signal becomes a byte in the pipe on which the loop rests.

        Afterwards they are ignored: the process is about to exit, and a late one must not change its exit code.
        """
        ours = [signal.SIGTERM, signal.SIGINT]
        if self._hangup.heeded:
            ours.append(signal.SIGHUP)
        for number in (*ours, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        wakeup = signal.set_wakeup_fd(self._wish, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number in ours:
                signal.signal(number, signal.SIG_IGN)

    def _over(self) -> bool:
        return self._stopping_since is not None and not self._alive()

    def _alive(self) -> list[Child]:
        return [child for slot in (*self._slots, *self._forks) for child in slot.all()] + self._retired

    def _rest(self) -> None:
        """Until something happens, or a time has come."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wishes, selectors.EVENT_READ, None)
            for child in self._alive():
                if child.line.fileno() >= 0:
                    selector.register(child.line, selectors.EVENT_READ, child)
            for key, _ in selector.select(self._patience_s()):
                if key.data is None:
                    for number in os.read(self._wishes, 4096):
                        self._on_signal(number)
                else:
                    key.data.hear()

    def _patience_s(self) -> float | None:
        now = time.monotonic()
        times = [child.kill_at for child in self._alive() if child.kill_at is not None]
        if self._stopping_since is None:
            times += [slot.not_before for slot in (*self._slots, *self._forks) if slot.not_before > now]
        return max(0.0, min(times) - now) if times else None

    def _on_signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._on_stop()
        elif number == signal.SIGHUP and self._stopping_since is None:
            if self._hangup.closed_terminal():
                self._on_stop()
                return
            self._generation += 1
            log.info("reloading: a fresh process for each worker, one after another")
            for child in self._alive():
                if not child.ready and child not in self._retired:  # it boots with older code, and may hang in it
                    child.drain(self._limit_s)

    def _on_stop(self) -> None:
        now = time.monotonic()
        if self._stopping_since is None:
            log.info("stopping: %d running, with %g s at most", len(self._alive()), self._limit_s)
            self._end(0)
        elif now - self._stopping_since >= SAME_SIGNAL_S:
            log.critical("a second signal: leaving at once; what was running runs again when the lease ends")
            self._exit_code = EXIT_FAILURE
            for child in self._alive():
                child.kill()

    def _end(self, exit_code: int) -> None:
        """Have all end; the exit code is this one unless something worse comes up."""
        self._stopping_since = time.monotonic()
        self._exit_code = exit_code

    # -- what is to be done --------------------------------------------------------------------------------------------

    def _tend(self) -> None:
        for child in self._alive():
            if child.kill_if_late():
                log.error("worker %d (pid %d) is not done at its deadline: killed", child.number, child.pid)
                if self._stopping_since is not None:
                    self._exit_code = self._exit_code or EXIT_FAILURE
        if self._stopping_since is not None:
            self._drain_all()
            return
        self._note_ready()
        self._fill(self._slots)
        self._roll()
        self._tend_forks()

    def _drain_all(self) -> None:
        """Workers first; what their middleware runs beside them (their metrics, say) when they are gone."""
        workers = [child for slot in self._slots for child in slot.all()]
        for child in workers:
            child.drain(self._limit_s)
        if not workers:
            for child in self._alive():
                child.drain(FORKS_END_S)

    def _note_ready(self) -> None:
        for slot in (*self._slots, *self._forks):
            if (old := slot.promote()) is not None:
                log.info("worker %d: process %d takes over from %d", slot.number, slot.pid, old.pid)
                old.drain(self._limit_s)
        if not self._complete and all(slot.ready for slot in self._slots):
            self._complete = True
            number = len(self._slots)
            log.info("%s ready", f"all {number} processes are" if number > 1 else "1 process is")

    def _fill(self, slots: list[Slot]) -> None:
        """Start a child wherever there is none; the very first one alone."""
        now = time.monotonic()
        for slot in slots:
            if slot.child is None and slot.fresh is None and slot.not_before <= now and not self._parked(slot):
                slot.child = Child(self._command, slot.number, self._generation, slot.options)
            if slots is self._slots and not self._complete and not any(one.ready for one in slots):
                return

    def _parked(self, slot: Slot) -> bool:
        """Whether it waits for other code."""
        return self._patient and slot.failed_generation == self._generation

    def _roll(self) -> None:
        """A reload, one step: the next old child gets a fresh one beside it."""
        if not self._complete or self._given_up == self._generation:
            return
        if any(slot.fresh is not None or slot.old is not None for slot in self._slots):
            return
        for slot in self._slots:
            if slot.child is not None and slot.child.ready and slot.child.generation < self._generation:
                slot.fresh = Child(self._command, slot.number, self._generation)
                return

    def _tend_forks(self) -> None:
        """What the middleware wants beside the workers, as the newest code that works says."""
        ready = [slot.child for slot in self._slots if slot.child is not None and slot.ready]
        newest = max(ready, key=lambda child: child.generation, default=None)
        if self._complete and newest is not None and newest.generation > self._forks_of:
            self._forks_of = newest.generation
            for child in (child for slot in self._forks for child in slot.all()):
                child.drain(FORKS_END_S)
                self._retired.append(child)
            self._forks = [Slot(0, ("--fork", name)) for name in newest.facts.get("forks") or ()]
        self._fill(self._forks)

    # -- who has ended -------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        for child in self._alive():
            code = child.exit_code
            if code is None:
                continue
            child.hear()  # its last words
            child.close()
            if child in self._retired:
                self._retired.remove(child)
            else:
                self._gone(next(slot for slot in (*self._slots, *self._forks) if child in slot.all()), child, code)

    def _gone(self, slot: Slot, child: Child, code: int) -> None:
        role = slot.remove(child)
        if self._stopping_since is not None:
            booting_in_vain = not child.ready and code == -signal.SIGTERM
            if code != 0 and slot in self._slots and not booting_in_vain:
                self._exit_code = self._exit_code or EXIT_FAILURE
        elif slot in self._forks:
            self._fork_gone(slot, child, code)
        elif role != "old" and child.leaving:
            log.info("worker %d (pid %d) had begun with older code", slot.number, child.pid)
        elif role == "old":
            if code:
                log.warning("worker %d (pid %d) %s while it drained", slot.number, child.pid, _how(code))
        elif role == "fresh":
            self._given_up = max(self._given_up, child.generation)  # meanwhile there may be newer code
            log.error(
                "the fresh process for worker %d %s: the reload is given up, the old ones go on",
                slot.number,
                _how(code),
            )
        else:
            self._worker_gone(slot, child, code)

    def _worker_gone(self, slot: Slot, child: Child, code: int) -> None:
        if not child.ready and code in (EXIT_USAGE, EXIT_BOOT):
            self._not_booted(slot, child, code)
        elif not child.ready and not self._complete and self._too_many_crashes():
            log.critical("worker %d %s before it was ready, again and again", slot.number, _how(code))
            self._end(EXIT_BOOT)
        else:
            pause_s = slot.back_off(child)
            log.warning(
                "worker %d (pid %d) %s: another takes its place in %.1f s", slot.number, child.pid, _how(code), pause_s
            )

    def _too_many_crashes(self) -> bool:
        self._crashes += 1
        return self._crashes >= MOST_CRASHES and not self._patient

    def _not_booted(self, slot: Slot, child: Child, code: int) -> None:
        """It has said why. At the beginning, and where nobody works any more, that is the end; otherwise it may pass."""
        if self._patient:
            slot.failed_generation = child.generation  # meanwhile there may be newer code
            log.warning("worker %d waits for the next change", slot.number)
        elif self._complete and any(one.ready for one in self._slots):
            pause_s = slot.back_off(None)
            log.warning("worker %d could not start and is tried again in %.1f s", slot.number, pause_s)
        else:
            self._end(code)

    def _fork_gone(self, slot: Slot, child: Child, code: int) -> None:
        if code == 0:  # it has done what it had to do
            self._forks.remove(slot)
            return
        pause_s = slot.back_off(child)
        log.warning("%s %s: it is started again in %.1f s", slot.options[-1], _how(code), pause_s)


def _told(number: int, child: Child | None) -> dict[str, Any]:
    """What is known of a worker's health."""
    fresh = child is not None and time.monotonic() - child.told_at < STALE_S
    health = child.facts.get("health") if child is not None and fresh else None
    booted = child is not None and child.ready
    return {
        "worker": number,
        "pid": child.pid if child is not None else None,
        "booted": booted,
        "ready": booted and health == [],
        "health": health,
    }


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
