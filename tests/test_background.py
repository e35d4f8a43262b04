# SPDX-License-Identifier: Apache-2.0
"""Background loops: they survive every error, say so, and are told of when they do not recover."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from sqlalchemy.exc import OperationalError

from adapter import background
from adapter.background import BackgroundLoop
from adapter.errors import SpoolError
from tests.support_waiting import eventually


class Work:
    """Work that raises what it is told to."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.runs = 0

    def __call__(self):
        self.runs += 1
        if self.errors:
            raise self.errors.pop(0)


class Log:
    """Keeps what is logged."""

    def __init__(self):
        self.lines = []

    def _keep(self, event, **facts):
        self.lines.append((event, facts))

    info = warning = error = _keep


@pytest.fixture
def log(monkeypatch):
    kept = Log()
    monkeypatch.setattr(background, "log", kept)
    background._logged_at.clear()
    return kept


@pytest.fixture
def loops():
    """Make loops that are stopped at the end."""
    made = []

    def make(work, name="test", **options):
        loop = BackgroundLoop(name, work, **{"period": 0.01, **options})
        made.append(loop)
        return loop

    yield make
    for loop in made:
        loop.stop(5)


class Pauses(threading.Event):
    """An event that notes how long it is waited for, and does not let anyone wait."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def wait(self, timeout=None):
        self.noted.append(timeout)
        return super().wait(0.001)


def test_work_that_fails_once_is_done_again(loops, log):
    """Whatever a run raises, the next one follows; the loop then runs as before."""
    work = Work(RuntimeError("CANARY^NAME"))
    loop = loops(work)
    loop.start()

    eventually(lambda: work.runs >= 3)
    assert loop.state.state == "running"
    assert (loop.state.failures, loop.state.error) == (1, "RuntimeError")
    assert not loop.lost
    assert loop.problem is None


def test_the_delay_grows_is_bounded_and_begins_again(loops, log):
    """Failures pause 0.1 s, then twice as long each time, up to a bound; success resets that."""
    pauses = Pauses()
    work = Work(*[RuntimeError()] * 6)
    loop = loops(work, period=0.5, stopping=pauses)
    loop.start()
    eventually(lambda: work.runs >= 8)
    work.errors.append(RuntimeError())
    eventually(lambda: not work.errors and len(pauses.noted) > work.runs - 1)
    loop.stop(5)

    assert pauses.noted[:7] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 0.5])
    assert set(pauses.noted[7:]) == {0.5, 0.1}


def test_a_longer_delay_can_be_asked_for(loops, log):
    """A loop that asks a peer may leave it in peace for longer."""
    pauses = Pauses()
    work = Work(*[RuntimeError()] * 10)
    loop = loops(work, longest_delay=10.0, stopping=pauses)
    loop.start()
    eventually(lambda: not work.errors and work.runs > 10)
    loop.stop(5)

    assert max(pauses.noted) == 10.0


def test_the_log_names_the_type_and_never_the_text(loops, log):
    """Texts may quote addresses and patients; only those of our own errors are shown."""
    loop = loops(Work(RuntimeError("CANARY^NAME")))
    loop.start()
    (_, facts), _ = eventually(lambda: len(log.lines) == 2 and log.lines)
    assert (facts["loop"], facts["error"]) == ("test", "RuntimeError")
    assert facts["at"].startswith("test_background.py:")
    assert "CANARY" not in str(log.lines)

    other = loops(Work(SpoolError("there is no spool")), name="other")
    other.start()
    eventually(lambda: len(log.lines) == 4)
    assert log.lines[2][1]["reason"] == "there is no spool"


def test_the_log_is_one_line_a_minute(loops, log):
    """A loop that fails again and again, or now and then, does not fill the disk with it."""
    work = Work(*[RuntimeError()] * 5)
    loop = loops(work, longest_delay=0.01)
    loop.start()
    eventually(lambda: work.runs > 6)
    work.errors.append(RuntimeError())
    eventually(lambda: loop.state.failures == 6)
    loop.stop(5)

    failed = [event for event, _ in log.lines if "failed" in event]
    assert len(failed) == 1


def test_a_loop_that_does_not_recover_is_lost_until_it_does(loops, log, monkeypatch):
    """Failing for longer than the bound without one good run, only a new process helps."""
    monkeypatch.setattr(background, "LOST_SECONDS", 0.3)
    work = Work(*[RuntimeError()] * 1_000_000)
    loop = loops(work, longest_delay=0.01)
    began = time.monotonic()
    loop.start()

    eventually(lambda: background.lost() == ["test"])
    assert time.monotonic() - began > 0.3
    state = background.states()["test"]
    assert (state["state"], state["error"]) == ("failing", "RuntimeError")
    assert background.failures()["test"] >= state["failures"] > 1

    work.errors.clear()
    eventually(lambda: background.lost() == [])
    assert background.states()["test"]["state"] == "running"


@pytest.mark.parametrize(
    "error", [OperationalError("select 1", {}, Exception()), OSError(5, "I/O"), SpoolError("away")]
)
def test_what_is_away_makes_no_loop_lost(loops, log, monkeypatch, error):
    """Ledger, disk and spool are away for a new process too: shown, but no reason to replace it."""
    monkeypatch.setattr(background, "LOST_SECONDS", 0.05)
    work = Work(*[error] * 1_000_000)
    loop = loops(work, longest_delay=0.01)
    loop.start()
    time.sleep(0.2)  # longer than the bound

    assert background.lost() == []
    assert background.states()["test"]["error"] == type(error).__name__

    strict = loops(Work(*[error] * 1_000_000), name="strict", outside=(), longest_delay=0.01)
    strict.start()
    eventually(lambda: background.lost() == ["strict"])


def test_a_thread_that_ends_by_itself_is_dead_and_lost(loops, log, monkeypatch):
    """What no loop may catch (SystemExit) ends the thread; this is seen at once."""
    monkeypatch.setattr(threading, "excepthook", lambda _arguments: None)
    loop = loops(Work(SystemExit()))
    loop.start()

    eventually(lambda: background.lost() == ["test"])
    assert background.states()["test"]["state"] == "dead"
    loop.stop(5)
    assert background.lost() == []


def test_a_long_run_tells_that_it_works(loops, log):
    """A run that goes on for hours says so; what failed before does not count any more."""
    release = threading.Event()
    work = Work(RuntimeError())

    def run():
        work()
        loop.succeeded()
        release.wait(20)

    loop = loops(run)
    loop.start()
    eventually(lambda: work.runs == 2 and loop.state.state == "running")
    assert loop.state.failures == 1
    release.set()


def test_a_loop_that_stops_or_finishes_is_forgotten(loops, log):
    """Only loops that run, or should, are listed."""
    stopped = loops(Work(), name="stopped")
    finished = loops(Work(), name="finished")
    finished._work = finished.finish
    stopped.start()
    finished.start()
    eventually(lambda: list(background.states()) == ["stopped"])
    stopped.stop(5)
    assert background.states() == {}


@pytest.mark.parametrize("once_more", [False, True])
def test_the_last_run_after_the_stop(loops, log, once_more):
    """A loop that has something to save runs once more after it was told to stop; no other does."""
    runs = []
    loop = loops(lambda: runs.append(loop.stopping.is_set()), period=60, once_more=once_more)
    loop.start()
    eventually(lambda: runs)
    loop.stop(5)

    assert runs == [False, True] if once_more else [False]


def test_a_loop_that_cannot_be_started_is_not_listed(loops, log, monkeypatch):
    """Without a thread to be had the caller is told, and nothing stays behind."""

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        loops(Work()).start()
    assert background.states() == {}


def test_of_loops_with_one_name_the_worst_is_shown(loops, log):
    """Each lease has a loop, all of one name: one that fails is not hidden by the others."""
    good, bad = loops(Work()), loops(Work(*[RuntimeError()] * 1_000_000))
    also_good = loops(Work())
    for loop in (good, bad, also_good):
        loop.start()
    eventually(lambda: background.states()["test"]["state"] == "failing")


def test_a_forked_child_begins_without_loops(loops, log):
    """Threads do not survive a fork; a child lists only the loops that it starts itself."""
    loop = loops(Work(RuntimeError()))
    loop.start()
    eventually(lambda: background.failures()["test"])
    with background._lock:  # as if another thread were just reading the list
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)  # a child that waits for the lock ends
            os._exit(len(background.states()) + len(background.lost()) + len(background.failures()))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert list(background.states()) == ["test"]
