# SPDX-License-Identifier: Apache-2.0
"""The REST API: health, metrics, and the timelines of studies.  It only reads.

::

    server.py    the process: a socket, a signal, uvicorn
    opening.py   the adapter, opened as soon as its ledger answers, and the due-work poll
    app.py       the routes
    problems.py  errors as problem documents (RFC 9457)
    health.py    green, yellow or red, and why
    metrics.py   metrics for Prometheus and for autoscaling

Without a ledger it still answers: `/health/live` and `/metrics` as always, all other routes with
503.
"""

from adapter.api.server import serve

__all__ = ["serve"]
