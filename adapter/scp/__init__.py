# SPDX-License-Identifier: Apache-2.0
"""The Storage and Verification SCP: bytes made durable, then Success, and nothing else needed.

::

    wire -> transport -> reception (acceptance, configuration) -> store (peek) -> spool/incoming
                              |                                     |
                              +---------------> reports <-----------+--> bell
                                                   |
                                                 beside: bell, ledger, heartbeat

The transport is `adapter.scp.pynetdicom_server`; no other module knows which one it is, but `main`,
which puts the parts together.
"""

from adapter.scp.main import Scp, serve

__all__ = ["Scp", "serve"]
