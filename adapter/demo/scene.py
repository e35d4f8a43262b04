# SPDX-License-Identifier: Apache-2.0
"""The demo's scene: an adapter of its own in a scratch folder, and the PACS beside it."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter.core import Adapter
from adapter.embedded.roles import Role, accepts
from adapter.errors import AdapterError
from adapter.ledger import configuration
from adapter.models import AETitle, Destination, EntityKind, Source
from adapter.processors import registry
from adapter.settings import Scu, Settings, load

AE_TITLE = "DEMO"
MODALITY = "MODALITY"
DESTINATION = "demo-pacs"
PACS_AE_TITLE = "DEMOPACS"
PIPELINE = "example"
#: Seconds of quiet that close the demo's groups: the shortest allowed.
TIMEOUT = 5
#: The demo watches the disk with these, so that it runs where the defaults would refuse.
WATERMARK_PERCENT, RESERVE_GB = 100.0, 0.2

#: Changes are in force within two seconds; a killed SCP may have to come back first.
_IN_FORCE_SECONDS = 30.0

_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Scene:
    """Where everything of one demo is.

    Attributes
    ----------
    settings : Settings
        Those of its adapter.
    pacs_port : int
        TCP port of its PACS.
    pacs_folder : Path
        What the PACS received.
    """

    settings: Settings
    pacs_port: int
    pacs_folder: Path

    @property
    def adapter(self) -> Destination:
        """The adapter, as the modality sees it."""
        port = self.settings.dicom.scp.port
        return Destination(name=AE_TITLE, ae_title=AE_TITLE, host_ip=_HOST, port=port)

    @property
    def modality(self) -> Scu:
        """The modality's side."""
        return Scu(ae_title=MODALITY)

    @property
    def pacs(self) -> Role:
        """The PACS, as a role of the supervisor."""
        arguments = ["-m", "adapter.demo.pacs", str(self.pacs_port), str(self.pacs_folder)]
        return Role(
            "pacs",
            [sys.executable, *arguments],
            lambda _pid: accepts(_HOST, self.pacs_port),
            nice=1,
        )

    def register(self, adapter: Adapter) -> None:
        """Add the demo's AE title, source and destination, and wait until they are in force."""
        ae_title = AETitle(
            ae_title=AE_TITLE,
            processor_settings={
                "timeout": str(TIMEOUT),
                "jobRetryDelay": "1000",
                f"pipeline-{PIPELINE}": PIPELINE,
            },
        )
        registry.validate(ae_title)
        destination = Destination(
            name=DESTINATION, ae_title=PACS_AE_TITLE, host_ip=_HOST, port=self.pacs_port
        )
        for kind, entity in (
            (EntityKind.DESTINATION, destination),
            (EntityKind.SOURCE, Source(ae_title=MODALITY, host_ip=[_HOST])),
            (EntityKind.AE_TITLE, ae_title),
        ):
            version = configuration.put(adapter.ledger, kind, entity, replace=False)
        end = time.monotonic() + _IN_FORCE_SECONDS
        while (adapter.spool.read_configuration() or {"version": 0})["version"] < version:
            if time.monotonic() > end:
                raise AdapterError("the SCP does not take the new configuration over")
            time.sleep(0.1)


def build(folder: Path) -> Scene:
    """Write the settings of a demo into its folder, on ports that are free now."""
    for name in [name for name in os.environ if name.startswith("DICOMADAPTER")]:
        del os.environ[name]  # they are meant for another adapter
    scp, api, flower, broker, pacs = _free_ports(5)
    document: dict[str, Any] = {
        "dicom": {
            "scp": {"host": _HOST, "port": scp},
            "scu": {
                "aeTitle": "DEMOSCU",
                "export": {
                    "retryDelaySeconds": 2,
                    "holdMinimumSeconds": 1,
                    "holdMaximumSeconds": 5,
                },
            },
        },
        "storage": {
            "watermarkPercent": WATERMARK_PERCENT,
            "reserveSpaceGB": RESERVE_GB,
            "retentionSeconds": 3600,  # results stay, to be compared with what the PACS received
        },
        "services": {"platform": {"retryDelaySeconds": 2}},
        "pipelines": {
            PIPELINE: {
                "name": "Example pipeline",
                "command": ["{python}", "-m", "adapter.demo.pipeline", "{input}", "{output}"],
                "destinations": [DESTINATION],
                "timeoutSeconds": 600,
            }
        },
        "api": {"port": api},
        "flower": {"port": flower},
        "broker": {"port": broker},
        "workers": {"leaseSeconds": 6},
    }
    data = folder / "data"
    data.mkdir(mode=0o700)
    text = json.dumps({"DicomAdapter": document}, indent=2)
    (data / "appsettings.json").write_text(text, encoding="utf-8")
    return Scene(load(data=data), pacs, folder / "pacs")


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind((_HOST, 0))
        return [probe.getsockname()[1] for probe in probes]
