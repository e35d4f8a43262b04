# SPDX-License-Identifier: Apache-2.0
"""Flower as the adapter serves it: read-only unless the settings say otherwise, nothing in public.

Flower has no setting for the password of its metrics, so their handler is changed here.
"""

from __future__ import annotations

import os

import tornado.web
from flower.views import monitor

from adapter.embedded.roles import flower_environment
from adapter.settings import Settings


def guard(settings: Settings) -> None:
    """Configure the Flower that this process becomes, however it was started."""
    for name, value in flower_environment(settings).items():
        os.environ.setdefault(name, value)
    monitor.Metrics.get = tornado.web.authenticated(monitor.Metrics.get)
