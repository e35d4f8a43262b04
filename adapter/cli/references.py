# SPDX-License-Identifier: Apache-2.0
"""Names that lead nowhere: pipelines that AE titles name, destinations that pipelines name."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress

from adapter.errors import ConfigurationError
from adapter.models import AETitle
from adapter.processors import registry
from adapter.settings import Settings


def missing_pipelines(settings: Settings, ae_title: AETitle) -> list[str]:
    """Return warnings about an AE title's pipelines that the settings do not have."""
    known = ", ".join(sorted(settings.pipelines)) or "none"
    with suppress(ConfigurationError):  # told as a problem of its job processor
        return [
            f"AE title {ae_title.key!r}: the settings have no pipeline {name!r}, so its jobs will "
            f"be parked; there are: {known}"
            for name in registry.validate(ae_title)
            if name not in settings.pipelines
        ]
    return []


def missing_destinations(
    settings: Settings, pipelines: Iterable[str], known: Collection[str]
) -> list[str]:
    """Return warnings about destinations of pipelines that are not there (yet)."""
    return [
        f"pipeline {pipeline!r}: there is no destination {name!r} yet (`destination add`)"
        for pipeline in pipelines
        if pipeline in settings.pipelines
        for name in settings.pipelines[pipeline].destinations
        if name not in known
    ]
