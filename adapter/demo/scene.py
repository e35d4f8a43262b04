# SPDX-License-Identifier: Apache-2.0
"""The demo's scene: its adapter, modality and PACS, with their addresses and folders.

The demo creates an adapter in a scratch folder, and a PACS; or it uses an adapter that runs
already, whose pipelines, PACS and modality are elsewhere.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter import heartbeat
from adapter.core import Adapter
from adapter.embedded.roles import Role, accepts, own_command
from adapter.errors import AdapterError
from adapter.ledger import configuration
from adapter.models import AETitle, DicomDestination, EntityKind, Source
from adapter.processors import registry
from adapter.settings import Scu, Settings, load

AE_TITLE = "DEMO"
MODALITY = "MODALITY"
DESTINATION = "demo-pacs"
PACS_AE_TITLE = "DEMOPACS"
PIPELINE = "example"
#: Seconds of quiet that close the demo's groups: the shortest allowed.
TIMEOUT = 5
#: The demo's watermark, with which it also runs on disks that are too full for the defaults.
WATERMARK_PERCENT, RESERVE_GB = 100.0, 0.2

#: Changes are in force within two seconds; a killed SCP may have to restart first.
_IN_FORCE_SECONDS = 30.0

_HOST = "127.0.0.1"


@dataclass(frozen=True)
class Scene:
    """The addresses and folders of one demo.

    Attributes
    ----------
    settings : Settings
        The adapter's settings.
    adapter : DicomDestination
        The adapter, as the modality sees it.
    modality_address : str
        The modality's address, as the adapter sees it.
    pacs : DicomDestination
        The PACS, as the adapter sees it.
    received : Path
        Folder of the files that the PACS received.
    again : bool
        Whether the demo may have run before: its study is then processed again.
    """

    settings: Settings
    adapter: DicomDestination
    modality_address: str
    pacs: DicomDestination
    received: Path
    again: bool = False

    @property
    def modality(self) -> Scu:
        """The modality's SCU settings."""
        return Scu(ae_title=MODALITY)

    @property
    def pacs_role(self) -> Role:
        """The PACS, as a role of the supervisor."""
        host, port = self.pacs.host_ip, self.pacs.port
        arguments = ("--host", host, "--port", str(port), str(self.received))
        return Role(
            "pacs", own_command("demo-pacs", *arguments), lambda _pid: accepts(host, port), nice=1
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
            resend="rerun" if self.again else "ignore",
        )
        registry.validate(ae_title)
        source = Source(ae_title=MODALITY, host_ip=[self.modality_address])
        version = 0
        for kind, entity in (
            (EntityKind.DESTINATION, self.pacs),
            (EntityKind.SOURCE, source),
            (EntityKind.AE_TITLE, ae_title),
        ):
            there = {item.entity.key for item in configuration.current(adapter.ledger, kind)}
            replace = self.again and entity.key in there
            put = configuration.put(adapter.ledger, kind, entity, replace=replace)
            version = max(version, put)
        end = time.monotonic() + _IN_FORCE_SECONDS
        while not in_force(adapter, version):
            if time.monotonic() > end:
                raise AdapterError("the SCP does not apply the new configuration")
            time.sleep(0.1)


def in_force(adapter: Adapter, version: int) -> bool:
    """Return whether every receiving process reports this configuration version, or newer."""
    there = [
        beat.get("configuration_version", 0)
        for beat in heartbeat.read_all(adapter.spool)
        if beat["role"] == "scp" and beat["age"] < heartbeat.SILENCE_SECONDS
    ]
    return bool(there) and min(there) >= version


def build(folder: Path) -> Scene:
    """Write the settings of a demo into its folder, on ports that are free now."""
    for name in [name for name in os.environ if name.startswith("DICOMADAPTER")]:
        del os.environ[name]  # they configure another adapter
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
            "retentionSeconds": 3600,  # keeps the results, which the PACS's files are compared with
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
    return Scene(
        load(data=data),
        adapter=DicomDestination(name=AE_TITLE, ae_title=AE_TITLE, host_ip=_HOST, port=scp),
        modality_address=_HOST,
        pacs=DicomDestination(name=DESTINATION, ae_title=PACS_AE_TITLE, host_ip=_HOST, port=pacs),
        received=folder / "pacs",
    )


def join(settings: Settings, scp: tuple[str, int], pacs: tuple[str, int], received: Path) -> Scene:
    """Return the scene of an adapter that runs already.

    Parameters
    ----------
    scp, pacs : tuple of str and int
        Host and port of the adapter's receiver, and of the PACS.

    Raises
    ------
    AdapterError
        If the receiver's name cannot be resolved.
    """
    (scp_host, scp_port), (pacs_host, pacs_port) = scp, pacs
    return Scene(
        settings,
        adapter=DicomDestination(name=AE_TITLE, ae_title=AE_TITLE, host_ip=scp_host, port=scp_port),
        modality_address=_address_towards(scp_host, scp_port),
        pacs=DicomDestination(
            name=DESTINATION, ae_title=PACS_AE_TITLE, host_ip=pacs_host, port=pacs_port
        ),
        received=received,
        again=True,
    )


def _address_towards(host: str, port: int) -> str:
    """Return the local address from which packets to a host are sent."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise AdapterError(f"{host}: {error.strerror or error}") from None


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind((_HOST, 0))
        return [probe.getsockname()[1] for probe in probes]
