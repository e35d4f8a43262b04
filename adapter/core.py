# SPDX-License-Identifier: Apache-2.0
"""One adapter: its settings, spool and ledger, opened together and sure to belong together."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass

from adapter.errors import SpoolError
from adapter.ledger import Ledger
from adapter.settings import Settings
from adapter.spool import Spool


@dataclass(frozen=True)
class Adapter:
    """What every role of one adapter works with."""

    settings: Settings
    spool: Spool
    ledger: Ledger

    def close(self) -> None:
        """Close the ledger's connections."""
        self.ledger.close()

    def storage_is_low(self) -> bool:
        """Tell whether the spool's disk is above the watermark, read now."""
        storage = self.settings.storage
        return self.spool.space(storage.watermark_percent, storage.reserve_space_gb).low


def open_adapter(settings: Settings, *, rebuilding: bool = False) -> Adapter:
    """Open an adapter; on first use, make its folders, its spool and its ledger.

    Parameters
    ----------
    settings : Settings
        Which adapter is meant.
    rebuilding : bool
        True only for `rebuild`: an empty ledger may then adopt a spool that holds instances.

    Raises
    ------
    SpoolError
        If spool and ledger do not belong together, or the ledger is empty and the spool is not.
    """
    settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    spool = Spool(settings.spool_path)
    with (settings.data / "open.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        spool.create()
        ledger = Ledger(settings.database_url)
        ledger.upgrade()
        known = ledger.spool_id
        if known is None:
            if spool.holds_instances() and not rebuilding:
                raise SpoolError(
                    "the ledger is empty but the spool holds instances; if the ledger is lost for "
                    "good, run `dicom-adapter rebuild`"
                )
            ledger.adopt_spool(spool.id)
        elif known != spool.id:
            raise SpoolError(
                "this ledger belongs to another spool; check `storage > temporary` and "
                "`database > url`"
            )
    return Adapter(settings, spool, ledger)


def open_spool(settings: Settings) -> Spool:
    """Return the spool alone, for a receiver that works without the ledger.

    Raises
    ------
    SpoolError
        If there is no spool yet.
    """
    spool = Spool(settings.spool_path)
    _ = spool.id
    return spool
