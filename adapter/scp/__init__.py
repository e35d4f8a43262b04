# SPDX-License-Identifier: Apache-2.0
"""The Storage and Verification SCP: bytes made durable, then Success, and nothing else needed.

::

    connection     a socket and its deadlines; server: all of them; limiter: their number
        |
    association    upper_layer and dimse: bytes and no I/O
        |
    acceptor       acceptance, configuration: judges an association, gives it a sink
        |
    sink           what one association stores
    store          one instance, durable or withdrawn
        |
    background     wake-ups, events, heartbeat: what no C-STORE waits for

`main` puts the parts together, `processes` runs several of them on one port.  PDUs, command sets
and statuses are those of ``adapter.dicom``.
"""

from adapter.scp.main import Scp
from adapter.scp.processes import serve

__all__ = ["Scp", "serve"]
