# SPDX-License-Identifier: Apache-2.0
"""Heartbeats: what the process of each role says about itself, in a small file beside the spool.

A heartbeat is a hint for health and for tables; nothing depends on it.  The file is replaced whole
and not synced, and an old one only means that nobody writes it any more.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from adapter import background
from adapter.background import BackgroundLoop
from adapter.errors import SpoolAway
from adapter.spool import Spool

#: Seconds after which the process of a heartbeat counts as gone.
SILENCE_SECONDS = 10.0

#: Seconds between the beats of one process.
PERIOD = 1.0
#: Seconds without a beat after which a process has to be replaced.  A beat is written beside the
#: spool, so this is more than a file server takes to fail over.
DEAD_SECONDS = 60.0

#: What a receiver says in its heartbeat: a time before which it received nothing that is not
#: visible by now (seconds since 1970, UTC).
PUBLISHED_UNTIL = "published_until"

_FORGOTTEN_SECONDS = 3600.0
_STOP_SECONDS = 1.0


def _path(spool: Spool, role: str) -> Path:
    return spool.status / f"{role}-{socket.gethostname()}-{os.getpid()}.json"


def write(spool: Spool, role: str, **facts: Any) -> None:
    """Replace this process's heartbeat for a role.

    Raises
    ------
    OSError
        If the file system refuses it.
    SpoolAway
        If the spool is not there.
    """
    spool.check()
    path = _path(spool, role)
    beat = {"role": role, "host": socket.gethostname(), "pid": os.getpid(), "at": time.time()}
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.write_text(json.dumps({**beat, **facts}), encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):  # as on a full disk: it would stay for as long as this process
            temporary.unlink(missing_ok=True)
        raise


def remove(spool: Spool, role: str) -> None:
    """Remove this process's heartbeat for a role: it has stopped as it should."""
    with suppress(OSError):
        _path(spool, role).unlink(missing_ok=True)


def forget_gone(spool: Spool) -> None:
    """Delete the heartbeats of processes that died long ago, whole or half written."""
    with suppress(OSError):
        for path in (*spool.status.glob("*.json"), *spool.status.glob(".*.part")):
            if path.stat().st_mtime < time.time() - _FORGOTTEN_SECONDS:
                path.unlink(missing_ok=True)


def read_all(spool: Spool) -> list[dict[str, Any]]:
    """Return the heartbeats that are there and can be read, by role, host and process.

    Returns
    -------
    list of dict
        Each as written, with ``"age"``: seconds since then.  The process of one that is older than
        `SILENCE_SECONDS` is gone.
    """
    found = []
    with suppress(SpoolAway):
        spool.check()  # so that a volume that has come back is seen
    for path in sorted(spool.status.glob("*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            beat = json.loads(path.read_text(encoding="utf-8"))
            found.append({**beat, "age": max(0.0, time.time() - float(beat["at"]))})
    return found


def published(spool: Spool, moment: float) -> bool:
    """Tell whether every receiver that is alive has made visible what it received up to a moment.

    One that is silent for `SILENCE_SECONDS` counts as gone: what it had not made visible by then,
    it never acknowledges.

    Parameters
    ----------
    moment : float
        Seconds since 1970, UTC, by the receivers' clocks.
    """
    return all(
        beat.get(PUBLISHED_UNTIL, moment) > moment
        or beat["age"] >= SILENCE_SECONDS
        or _has_ended(beat)
        for beat in read_all(spool)
        if PUBLISHED_UNTIL in beat
    )


def _has_ended(beat: Mapping[str, Any]) -> bool:
    """Tell whether a heartbeat's process ran on this host and does so no more."""
    return (
        beat.get("host") == socket.gethostname() and not Path(f"/proc/{beat.get('pid')}").exists()
    )


class Heart:
    """A background loop that writes heartbeats, and waits for neither ledger nor broker.

    Each beat also shows the states of the other background loops of the process.

    Parameters
    ----------
    spool : Spool
        Where heartbeats are written; it need not be there yet.
    role : str
        The role of this process.
    facts : callable
        Returns what the role says about itself, None if it has nothing to say yet; called at every
        beat, and must not wait.
    """

    def __init__(
        self, spool: Spool, role: str, facts: Callable[[], Mapping[str, Any] | None]
    ) -> None:
        self._spool = spool
        self._role = role
        self._facts = facts
        self._beat_at = time.monotonic()
        self._problem: str | None = None
        self._loop = BackgroundLoop("heartbeat", self.beat, period=PERIOD)

    @property
    def age(self) -> float:
        """Seconds since the last beat began."""
        return time.monotonic() - self._beat_at

    @property
    def problem(self) -> str | None:
        """Why the spool took no heartbeat, e.g. ``"EROFS"``; None if it did.

        It takes no instance then either: this is how a process knows that without trying one.
        """
        if self.age > SILENCE_SECONDS:
            return f"no answer for {self.age:.0f} s"
        return self._problem

    def start(self) -> None:
        """Start beating."""
        forget_gone(self._spool)
        self._loop.start()

    def beat(self) -> None:
        """Beat now."""
        self._beat_at = time.monotonic()
        facts = self._facts()
        if facts is not None:
            try:
                write(self._spool, self._role, **facts, loops=background.states())
            except SpoolAway as away:
                self._problem = str(away)
            except OSError as error:
                self._problem = errno.errorcode.get(error.errno or 0, type(error).__name__)
            else:
                self._problem = None

    def stop(self) -> None:
        """Stop, and remove the heartbeat."""
        self._loop.stop(_STOP_SECONDS)
        remove(self._spool, self._role)
