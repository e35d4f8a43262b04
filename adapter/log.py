# SPDX-License-Identifier: Apache-2.0
"""Logging: one line of JSON (or, on a terminal, of text) for each unit of work, and never PHI.

Ids are bound once for an association or a task with ``structlog.contextvars``.  The renderers
escape control characters that a peer sends, so a peer cannot forge a line.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure(*, json: bool | None = None, level: str = "INFO") -> None:
    """Send structlog and the standard library's logging to standard error in one format.

    Parameters
    ----------
    json : bool, optional
        True for JSON lines, False for text; by default text on a terminal, else JSON.
    level : str
        The lowest level shown.
    """
    as_json = not sys.stderr.isatty() if json is None else json
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            renderer,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Libraries log one line per message or request; only their warnings are of interest.
    for name in ("celery", "kombu", "uvicorn.access", "httpx", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Their messages quote what a peer sent: values of data elements, AE titles, UIDs.
    for name in ("pydicom", "pynetdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the structured logger of a module."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger
