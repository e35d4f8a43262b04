# SPDX-License-Identifier: Apache-2.0
"""REST: health for machines, and what happened to a study for people.  It only reads.

::

    server.py   the process: a socket, a signal, uvicorn
    opening.py   the adapter, opened as soon as its ledger answers, and the due-work poll
    app.py      the routes; problems.py, what goes wrong told as RFC 9457 has it
    health.py   green, yellow or red, and why
    metrics.py  the same in numbers, for Prometheus and for whoever scales the pools

It answers without a ledger too: `/health/live` and `/metrics` always, everything else with 503.
"""

from adapter.api.server import serve

__all__ = ["serve"]
