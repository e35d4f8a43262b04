# SPDX-License-Identifier: Apache-2.0
"""Background loops: threads that repeat one piece of work, and survive its errors.

::

    start --> run the work --it returns--> wait for the period --+
                ^      |                                          |
                |      +--it raises--> log it, wait a little longer each time --+
                +-------------------------------------------------+-------------+

Every thread of a process that works in the background is such a loop.  The module keeps the list
of those that run: the heartbeat shows their states, `/metrics` counts their failures, and `/live`
names the loops that do not recover.  The list belongs to one process: a child made by fork begins
with an empty one, and starts its own loops.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sqlalchemy.exc import SQLAlchemyError

from adapter.errors import AdapterError
from adapter.log import get_logger

log = get_logger(__name__)

#: Seconds before the first repetition of work that failed; the delay doubles with each failure.
SHORTEST_DELAY = 0.1
#: Seconds to which the delay grows, unless the loop's period is longer.
LONGEST_DELAY = 1.0
#: Seconds of failure after which a loop counts as lost: the process has to be replaced.
LOST_SECONDS = 60.0
#: Seconds between two log lines about the same loop.
LOG_SECONDS = 60.0

#: Failures of something outside the process, such as the ledger or a disk.  A new process would
#: meet them too, so a loop that fails with them is shown, but never counts as lost.
OUTSIDE: tuple[type[Exception], ...] = (AdapterError, SQLAlchemyError, OSError)


@dataclass(frozen=True)
class LoopState:
    """What is known of a loop.

    Attributes
    ----------
    state : str
        ``failing`` if the last run raised an error, ``dead`` if the thread has ended on its own.
    since : float
        Seconds since 1970 (UTC) when this state began.
    failures : int
        Runs that failed since the loop started.
    error : str or None
        The type of the last error; None if there was none.
    """

    state: Literal["running", "failing", "dead"]
    since: float
    failures: int = 0
    error: str | None = None


class BackgroundLoop:
    """A thread that repeats one piece of work until it is stopped.

    Parameters
    ----------
    name : str
        Names the thread, and the loop in logs, metrics and heartbeats.
    work : callable
        One run.  A run that lasts long calls `succeeded` when it works.
    period : float, seconds
        The pause after a run that returns.
    longest_delay : float, seconds, optional
        The longest pause after a run that raises; by default the longer of `LONGEST_DELAY` and the
        period, so that the end of an outage is noticed as fast as anything else.
    outside : tuple of exception types, optional
        Errors that a new process would not mend: they never make the loop count as lost.
    wait_first : bool, optional
        Begin with a pause instead of a run.
    once_more : bool, optional
        Run once more after the loop was told to stop, for the work that came last.
    stopping : threading.Event, optional
        Ends the loop; several loops may share one.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], object],
        *,
        period: float = 0.0,
        longest_delay: float | None = None,
        outside: tuple[type[Exception], ...] = OUTSIDE,
        wait_first: bool = False,
        once_more: bool = False,
        stopping: threading.Event | None = None,
    ) -> None:
        self.name = name
        self.stopping = stopping or threading.Event()
        self._work = work
        self._period = period
        self._longest = max(LONGEST_DELAY, period) if longest_delay is None else longest_delay
        self._outside = outside
        self._wait_first = wait_first
        self._once_more = once_more
        self._delay = SHORTEST_DELAY
        self._state = LoopState("running", time.time())
        self._problem: str | None = None
        self._inside_since: float | None = None
        self._logged = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def state(self) -> LoopState:
        """The loop's state now."""
        if self._thread.ident is not None and not self._thread.is_alive():
            return LoopState("dead", self._state.since, self._state.failures, self._state.error)
        return self._state

    @property
    def problem(self) -> str | None:
        """Why the last run failed, fit for a user; None if it did not fail."""
        return self._problem

    @property
    def lost(self) -> bool:
        """Whether only a new process helps: the thread is dead, or has failed for too long."""
        since = self._inside_since
        too_long = since is not None and time.monotonic() - since > LOST_SECONDS
        return too_long or self.state.state == "dead"

    def start(self) -> None:
        """Start the thread.

        Raises
        ------
        RuntimeError
            If the system has no thread left.
        """
        _enter(self)
        try:
            self._thread.start()
        except BaseException:
            _leave(self)
            raise

    def finish(self) -> None:
        """Let the current run be the last one."""
        self.stopping.set()

    def stop(self, timeout: float | None = None) -> None:
        """Stop, and wait up to `timeout` seconds for the thread; one that hangs is left behind."""
        self.stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        _leave(self)

    def succeeded(self) -> None:
        """Take note that the work works; what failed before is over."""
        self._delay = SHORTEST_DELAY
        if self._state.state == "running":
            return
        self._problem = self._inside_since = None
        self._state = LoopState("running", time.time(), self._state.failures, self._state.error)
        if self._logged:
            log.info("a background loop works again", loop=self.name)
        self._logged = False

    def _run(self) -> None:
        if self._wait_first and self.stopping.wait(self._period) and not self._once_more:
            _leave(self)
            return
        stopping = self.stopping.is_set()
        while True:
            try:
                self._work()
            except Exception as error:  # noqa: BLE001 - whatever it is, the loop goes on
                self._failed(error)
                pause = self._delay
                self._delay = min(2 * self._delay, self._longest)
            else:
                self.succeeded()
                pause = self._period
            if stopping:
                break
            stopping = self.stopping.wait(pause)
            if stopping and not self._once_more:
                break
        _leave(self)

    def _failed(self, error: Exception) -> None:
        _count(self.name)
        known = isinstance(error, self._outside)
        if known:
            self._inside_since = None
        elif self._inside_since is None:
            self._inside_since = time.monotonic()
        # Only the text of our own errors is safe: others may quote addresses or patient data.
        kind = type(error).__name__
        self._problem = str(error) if isinstance(error, AdapterError) else kind
        before = self._state
        since = before.since if before.state == "failing" else time.time()
        self._state = LoopState("failing", since, before.failures + 1, kind)
        if _may_log(self.name):
            self._logged = True
            write = log.warning if known else log.error
            write(
                "a background loop failed and is started again",
                loop=self.name,
                error=kind,
                **({"reason": self._problem} if isinstance(error, AdapterError) else {}),
                **({} if known else {"at": _place(error)}),
            )


def _place(error: Exception) -> str:
    """Return where an error was raised: a file and a line, which quote nothing."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


# -- the loops of this process -------------------------------------------------------------------

_lock = threading.Lock()
_loops: list[BackgroundLoop] = []
_failures: dict[str, int] = {}
_logged_at: dict[str, float] = {}


def _forget() -> None:
    global _lock  # noqa: PLW0603 - another thread may have held it at the moment of the fork
    _lock = threading.Lock()
    for one in (_loops, _failures, _logged_at):
        one.clear()


os.register_at_fork(after_in_child=_forget)


def _enter(loop: BackgroundLoop) -> None:
    with _lock:
        _loops.append(loop)
        _failures.setdefault(loop.name, 0)


def _leave(loop: BackgroundLoop) -> None:
    with _lock:
        if loop in _loops:
            _loops.remove(loop)


def _count(name: str) -> None:
    with _lock:
        _failures[name] = _failures.get(name, 0) + 1


def _may_log(name: str) -> bool:
    with _lock:
        now = time.monotonic()
        if now < _logged_at.get(name, -LOG_SECONDS) + LOG_SECONDS:
            return False
        _logged_at[name] = now
        return True


def states() -> dict[str, dict[str, Any]]:
    """Return the state of each loop of this process, by name, fit for JSON.

    Of several loops with one name (each lease has one) the worst is shown.
    """
    with _lock:
        loops = list(_loops)
    found: dict[str, LoopState] = {}
    for loop in loops:
        now = loop.state
        known = found.get(loop.name)
        if known is None or _WORST.index(now.state) < _WORST.index(known.state):
            found[loop.name] = now
    return {name: asdict(state) for name, state in found.items()}


_WORST = ("dead", "failing", "running")


def lost() -> list[str]:
    """Return the names of the loops that only a new process can bring back."""
    with _lock:
        return sorted({loop.name for loop in _loops if loop.lost})


def failures() -> dict[str, int]:
    """Return how many runs of this process's loops have failed, by name of the loop."""
    with _lock:
        return dict(_failures)
