# SPDX-License-Identifier: Apache-2.0
"""Finds the plug-ins: job processors and observers, by entry point."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from adapter import plugins
from adapter.errors import ConfigurationError
from adapter.log import get_logger
from adapter.models import AETitle
from adapter.plugins import OBSERVERS, PROCESSORS
from adapter.processors.base import InstanceObserver, JobProcessor

log = get_logger(__name__)


def create_processor(ae_title: AETitle) -> JobProcessor:
    """Return the job processor of an AE title, with its settings validated.

    Raises
    ------
    ConfigurationError
        If no such processor is installed, or listing every problem of its settings.
    """
    found = plugins.find(PROCESSORS, ae_title.processor)
    if found is None:
        known = ", ".join(plugins.names(PROCESSORS))
        raise ConfigurationError([f"processor: {ae_title.processor!r} is none of {known}"])
    plugin: type[JobProcessor] = found.load()
    try:
        settings = plugin.Settings.model_validate(ae_title.processor_settings)
    except ValidationError as error:
        raise ConfigurationError([_problem(item) for item in error.errors()]) from None
    return plugin(ae_title, settings)


def validate(ae_title: AETitle) -> None:
    """Check an AE title's processor and its settings.

    Raises
    ------
    ConfigurationError
        As `create_processor`.
    """
    create_processor(ae_title)


def create_observers() -> list[InstanceObserver]:
    """Return an instance of every observer that is installed; one that cannot be made is told."""
    made = []
    for entry in plugins.installed(OBSERVERS):
        try:
            made.append(entry.load()())
        except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
            log.error("an observer cannot be used", observer=entry.name, error=type(error).__name__)
    return made


def _problem(item: Any) -> str:
    path = ".".join(["processorSettings", *map(str, item["loc"])])
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown setting of this processor"
    return f"{path}: {item['msg'].removeprefix('Value error, ')}"
