# SPDX-License-Identifier: Apache-2.0
"""What a stage's run is given."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from adapter.core import Adapter
from adapter.road import Bells


@dataclass(frozen=True)
class Work:
    """What a stage works with.

    Attributes
    ----------
    adapter : Adapter
        Settings, spool and ledger.
    bells : Bells
        To ring the next stage with.
    stopping : threading.Event
        Set when the worker is told to stop: finish or give back what is held, take nothing more.
    """

    adapter: Adapter
    bells: Bells
    stopping: threading.Event = field(default_factory=threading.Event)
