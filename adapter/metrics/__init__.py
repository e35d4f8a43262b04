# SPDX-License-Identifier: Apache-2.0
"""How a role that has no other port tells machines how it is: `/metrics`, `/live` and `/ready`.

::

    endpoint.py   the HTTP server, which answers whatever else hangs
    role.py       what every role tells alike, put together for it

What a role counts is its own business: the SCP's metrics are in `adapter.scp.metrics`, the workers'
in `workers.metrics`, those of the ledger, the spool and the broker in `adapter.api.metrics`.

No metric holds patient data, and no label has more values than the configuration: AE titles and
destinations are the configured ones, everything else comes from a fixed set.
"""

from adapter.metrics.endpoint import Endpoint, listen
from adapter.metrics.role import RoleCollector, serve_role

__all__ = ["Endpoint", "RoleCollector", "listen", "serve_role"]
