# SPDX-License-Identifier: Apache-2.0
"""The static settings: one JSON file, overridden by the environment, checked all at once.

The file is ``appsettings.json`` with one key, ``DicomAdapter``; the names and defaults are the
original's, extended in the same camelCase style.  ``DICOMADAPTER__DICOM__SCP__PORT`` overrides
``DicomAdapter > dicom > scp > port``.  Nothing else in the project reads the environment.

Which adapter is meant is said by ``--data DIR`` or ``--config FILE`` or, for programs that cannot
be given options (``celery``, ``flower``), by ``DICOMADAPTER_DATA`` and ``DICOMADAPTER_CONFIG``.

::

    section.py   what every level has in common
    dicom.py stages.py servers.py   the levels
    model.py     all of them, and what follows
    reading.py   file and environment, with every problem at once
"""

from adapter.settings.dicom import Dicom, Scp, Scu, ScuExport, Verification
from adapter.settings.model import CONFIG_VARIABLE, DATA_VARIABLE, Settings
from adapter.settings.reading import REMOVED, load
from adapter.settings.servers import Api, Broker, Database, Flower, Kubernetes, Metrics
from adapter.settings.stages import (
    Notification,
    Pipeline,
    Platform,
    ResultsService,
    Services,
    Storage,
    Workers,
)

__all__ = [
    "CONFIG_VARIABLE",
    "DATA_VARIABLE",
    "REMOVED",
    "Api",
    "Broker",
    "Database",
    "Dicom",
    "Flower",
    "Kubernetes",
    "Metrics",
    "Notification",
    "Pipeline",
    "Platform",
    "ResultsService",
    "Scp",
    "Scu",
    "ScuExport",
    "Services",
    "Settings",
    "Storage",
    "Verification",
    "Workers",
    "load",
]
