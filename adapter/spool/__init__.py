# SPDX-License-Identifier: Apache-2.0
"""The spool: where every file is, and the durability rules that make a Success a promise.

::

    spool/
      id                      the random id that it shares with its ledger
      key                     the key of the hashes of grouping values and patients
      configuration.json      the SCP's copy of AE titles, sources and destinations
      incoming/<nn>/          <arrival>.dcm: acknowledged, not yet registered; .*.part: on its way
      instances/<nn>/         <arrival>.dcm: registered
      quarantine/             <arrival>.dcm: could not be processed; the reason is in the ledger
      results/<job>/          what a pipeline produced, published whole by one rename
      work/<job>/             payload and running attempts of the embedded platform; what it printed
      status/                 heartbeats of the roles

The rules: a name becomes visible only when its file is whole; data, then name, then directory are
synced before anybody is told; files are never overwritten; no name comes from the wire.  The set of
directories is made once, synced, and never removed.

Every step that changes or syncs a file is taken through a `FileSystem`.  `tests/test_power_loss.py`
takes each sync, link and rename away, one at a time, and shows what a power loss would then break.

The whole spool is reached through the descriptor of its folder (`held_folder`), so that nothing of
it lands in another folder of the same name while its volume is away.  Where a directory of the set
is absent nobody knows what is in it: that is an error (`SpoolAway`), and never an empty listing or
a deletion that is done.

::

    held_folder.py      the spool's folder, held by a descriptor and known by its id
    incoming_file.py    one file on its way into incoming/
    spool.py            the layout, and the operations on it
"""

from __future__ import annotations

from adapter.spool.incoming_file import IncomingFile
from adapter.spool.spool import DiskSpace, Spool, shards

__all__ = ["DiskSpace", "IncomingFile", "Spool", "shards"]
