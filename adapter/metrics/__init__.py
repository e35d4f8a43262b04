# SPDX-License-Identifier: Apache-2.0
"""What a role without another port shows to machines: `/metrics`, `/live` and `/ready`.

::

    endpoint.py   the HTTP server, which answers whatever else hangs
    role.py       what every role shows

What only one role counts is elsewhere: the SCP's metrics are in `adapter.scp.metrics`, the workers'
in `workers.metrics`, those of the ledger, the spool and the broker in `adapter.api.metrics`.

No metric holds patient data, and no label has more values than the configuration: AE titles and
destinations are the configured ones, everything else comes from a fixed set.
"""

from adapter.metrics.endpoint import Endpoint, listen
from adapter.metrics.role import RoleCollector, serve_role, silent, unrecovered

__all__ = ["Endpoint", "RoleCollector", "listen", "serve_role", "silent", "unrecovered"]
