# SPDX-License-Identifier: Apache-2.0
"""One adapter: its settings, spool and ledger, opened together and checked to belong together."""

from __future__ import annotations

import fcntl
import socket
import time
from contextlib import suppress
from dataclasses import dataclass

from adapter import heartbeat
from adapter.errors import ConfigurationError, LedgerError, OtherSpool, SpoolAway, SpoolError
from adapter.ledger import Ledger, hashes
from adapter.log import get_logger
from adapter.rights import make_private_folder
from adapter.settings import Settings
from adapter.spool import Spool

log = get_logger(__name__)

#: Seconds between two reads of other hosts' heartbeats.
_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Adapter:
    """What every role of one adapter works with."""

    settings: Settings
    spool: Spool
    ledger: Ledger

    def close(self) -> None:
        """Close the ledger's connections."""
        self.ledger.close()


def open_adapter(settings: Settings, *, create: bool = False, rebuilding: bool = False) -> Adapter:
    """Open an adapter that exists; its spool may be away, and is found when it comes.

    Parameters
    ----------
    settings : Settings
        Which adapter is meant.
    create : bool
        True only for what sets an adapter up (`up`, `ledger upgrade --create-spool`): on first use
        its folders, its ledger and its spool are made.  A spool is made only if the ledger names
        none: else it is away, and comes back.
    rebuilding : bool
        True only for `rebuild`: an empty ledger may then adopt a spool that holds instances.

    Raises
    ------
    ConfigurationError
        If the ledger is SQLite and another host works on this spool.
    LedgerError
        If there is no ledger, or a newer release has upgraded it and left this one behind.
    SpoolError
        If spool and ledger do not belong together, or the ledger is empty and the spool is not.
    """
    ledger = open_ledger(settings)
    try:
        spool = _open_spool(settings, ledger, create=create, rebuilding=rebuilding)
    except BaseException:
        ledger.close()
        raise
    return Adapter(settings, spool, ledger)


def _open_spool(settings: Settings, ledger: Ledger, *, create: bool, rebuilding: bool) -> Spool:
    """Return the spool that belongs to a ledger, and bring the ledger up to date."""
    if not ledger.exists() and not (create or rebuilding):
        raise LedgerError(_no_adapter(settings))
    make_private_folder(settings.data)
    spool = Spool(settings.spool_path)
    _refuse_other_hosts(settings, spool)
    if not ledger.exists() and not rebuilding:
        with suppress(SpoolAway):
            _refuse_lost_ledger(spool)
    _upgrade(settings, ledger)
    known = ledger.spool_id
    if known is not None:
        _find(spool, known)
    elif create or rebuilding:
        _tie(spool, ledger, rebuilding=rebuilding)
    else:
        raise SpoolError(_no_adapter(settings))
    if hashes.are_keys_to_be_hashed(ledger):
        spool.check()  # the key is in it
        hashes.hash_plain_keys(ledger, spool.hash_key())
    return spool


def open_ledger(settings: Settings) -> Ledger:
    """Return the ledger alone; nothing is created, and no connection is opened yet."""
    return Ledger(settings.database_url, settings.database.connections)


def find_id(settings: Settings) -> str | None:
    """Return the id that the adapter's spool and ledger share; None if it has neither.

    Raises
    ------
    SQLAlchemyError
        If the spool is not seen from here, and the ledger does not answer.
    """
    with suppress(SpoolError, OSError):
        return Spool(settings.spool_path).id
    ledger = open_ledger(settings)
    try:
        return ledger.spool_id if ledger.exists() and ledger.revision is not None else None
    finally:
        ledger.close()


def upgrade_ledger(settings: Settings) -> str | None:
    """Bring the ledger's schema up to date without opening the spool; return its revision.

    Raises
    ------
    LedgerError
        If a newer release has upgraded the ledger and left this one behind.
    """
    make_private_folder(settings.data)
    ledger = open_ledger(settings)
    try:
        _upgrade(settings, ledger)
        return ledger.revision
    finally:
        ledger.close()


def _no_adapter(settings: Settings) -> str:
    return (
        f"there is no adapter in {settings.data} yet: `dicom-adapter up` creates one; --data or "
        "--config select another"
    )


def _upgrade(settings: Settings, ledger: Ledger) -> None:
    # The lock is for SQLite: two processes must not create the same file at once.
    with (settings.data / "open.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ledger.upgrade()


def _find(spool: Spool, known: str) -> None:
    """Let the spool be the one that the ledger names; it may be away."""
    try:
        spool.expect(known)
    except OtherSpool:
        raise
    except SpoolAway as away:
        log.error(str(away))


def _tie(spool: Spool, ledger: Ledger, *, rebuilding: bool) -> None:
    """Tie a ledger that names no spool to this one, which is made unless it is to be rebuilt."""
    if not rebuilding:
        spool.create()
        # The spool is read first: another role may tie the two, and receive, between both reads.
        _refuse_lost_ledger(spool, ledger)
    ledger.adopt_spool(spool.id)
    spool.expect(spool.id)


def _refuse_lost_ledger(spool: Spool, ledger: Ledger | None = None) -> None:
    if spool.holds_instances() and (ledger is None or ledger.spool_id is None):
        raise SpoolError(
            "the ledger is empty but the spool holds instances; if the ledger is lost for "
            "good, run `dicom-adapter rebuild`"
        )


def _refuse_other_hosts(settings: Settings, spool: Spool) -> None:
    """Refuse a spool that another host works on if the ledger is SQLite.

    A file of SQLite cannot be shared: the other host has a ledger of its own.  A heartbeat counts
    only if it is rewritten while we watch, because the hosts' clocks may differ, and because the
    heartbeat of a container that is gone stays for a while.
    """
    if not settings.database_url.startswith("sqlite"):
        return
    end = time.monotonic() + heartbeat.SILENCE_SECONDS
    first = _other_hosts(spool)
    while (now := _other_hosts(spool)) and time.monotonic() < end:
        if beating := sorted(host for host, at in now.items() if at != first.get(host, at)):
            problem = (
                "DicomAdapter > database > url: SQLite serves one host, and "
                f"{', '.join(beating)} works on this spool too: name a PostgreSQL database, "
                "postgresql+psycopg://..., for all of them (a container is a host)"
            )
            raise ConfigurationError([problem])
        time.sleep(_LOOK_SECONDS)


def _other_hosts(spool: Spool) -> dict[str, float]:
    """Return the other hosts that seem to be at work, and the time of each one's last heartbeat."""
    found: dict[str, float] = {}
    for beat in heartbeat.read_all(spool):
        host = str(beat.get("host"))
        if host != socket.gethostname() and beat["age"] < heartbeat.SILENCE_SECONDS:
            found[host] = max(found.get(host, 0.0), float(beat["at"]))
    return found


def open_spool(settings: Settings) -> Spool:
    """Return the spool alone, for a receiver that works without the ledger; it may be away.

    Raises
    ------
    ConfigurationError
        If the ledger is SQLite and another host works on this spool.
    """
    spool = Spool(settings.spool_path)
    _refuse_other_hosts(settings, spool)
    return spool
