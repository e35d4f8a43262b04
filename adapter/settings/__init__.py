# SPDX-License-Identifier: Apache-2.0
"""The static settings: one JSON file, overridden by the environment, checked all at once.

The file is ``appsettings.json`` with one key, ``DicomAdapter``; the names and defaults are the
original's, extended in the same camelCase style.  ``DICOMADAPTER__DICOM__SCP__PORT`` overrides
``DicomAdapter > dicom > scp > port``.  Nothing else in the project reads the environment.

``--data DIR`` or ``--config FILE`` selects the adapter; for programs without these options
(``celery``, ``flower``), ``DICOMADAPTER_DATA`` and ``DICOMADAPTER_CONFIG`` do.

::

    section.py   the base of all sections, and types of values
    dicom.py stages.py servers.py   the sections
    model.py     all settings, and values derived from them
    reading.py   reads file and environment, and reports every problem at once
"""

from adapter.settings.dicom import Dicom, ScpSettings, Scu, ScuExport, Verification
from adapter.settings.model import CONFIG_VARIABLE, DATA_VARIABLE, Settings
from adapter.settings.reading import REMOVED, load
from adapter.settings.servers import Api, Broker, Database, Flower, Kubernetes, Metrics
from adapter.settings.stages import (
    Notification,
    Pipeline,
    PlatformSettings,
    ResultsServiceSettings,
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
    "PlatformSettings",
    "ResultsServiceSettings",
    "ScpSettings",
    "Scu",
    "ScuExport",
    "Services",
    "Settings",
    "Storage",
    "Verification",
    "Workers",
    "load",
]
