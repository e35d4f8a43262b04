# SPDX-License-Identifier: Apache-2.0
"""The receivers that are compared, each started as a process, as a user would start it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AE_TITLE = "BENCH"


def free_port() -> int:
    """Return a free TCP port."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@dataclass(frozen=True)
class Receiver:
    """A receiver: its name, and what it has synced before it answers Success."""

    name: str
    syncs: str

    def here(self) -> bool:
        """Return whether it is installed."""
        return True

    def start(self, folder: Path, port: int, associations: int) -> subprocess.Popen[bytes]:
        """Start it; it stores received instances in `folder`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Ours(Receiver):
    """The adapter's own receiver, alone: no ledger is needed to receive."""

    durability: str = "instance"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def start(self, folder: Path, port: int, associations: int) -> subprocess.Popen[bytes]:
        """Start it with its defaults, except for the source and the watermark."""
        del associations
        scp = {
            "host": "127.0.0.1",
            "port": port,
            "rejectUnknownSources": False,
            "maximumNumberOfAssociations": 200,
            "maximumAssociationsPerPeer": 200,
        }
        storage = {
            "watermarkPercent": 100, "reserveSpaceGB": 0, "durability": self.durability
        }  # fmt: skip
        config = folder / "appsettings.json"
        section = {"dicom": {"scp": scp}, "storage": storage, "data": str(folder / "data")}
        section |= self.settings
        config.write_text(json.dumps({"DicomAdapter": section}))
        command = [str(Path(sys.executable).with_name("dicom-adapter")), "--config", str(config)]
        for more in (
            ["ledger", "upgrade", "--create-spool"],
            ["aet", "add", AE_TITLE, "--set", "pipeline-none=none"],
        ):
            subprocess.run(
                [*command, *more],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        return _quietly([*command, "scp"], folder)


class Dcmtk(Receiver):
    """DCMTK's storescp, with TCP_NODELAY, which disables Nagle's algorithm."""

    def here(self) -> bool:
        """Return whether it is installed."""
        return shutil.which("storescp") is not None

    def start(self, folder: Path, port: int, associations: int) -> subprocess.Popen[bytes]:
        """Start it, with a process for each association if there are several."""
        fork = ["--fork"] if associations > 1 else []
        return _quietly(["storescp", *fork, "-od", str(folder), str(port)], folder, TCP_NODELAY="1")


class Orthanc(Receiver):
    """Orthanc with its defaults."""

    def here(self) -> bool:
        """Return whether it is installed."""
        return shutil.which("Orthanc") is not None

    def start(self, folder: Path, port: int, associations: int) -> subprocess.Popen[bytes]:
        """Start it, without its REST API and plug-ins."""
        del associations
        config = folder / "orthanc.json"
        config.write_text(
            json.dumps(
                {
                    "StorageDirectory": str(folder / "storage"),
                    "IndexDirectory": str(folder / "storage"),
                    "DicomPort": port,
                    "DicomAet": AE_TITLE,
                    "HttpServerEnabled": False,
                    "DicomAlwaysAllowStore": True,
                }
            )
        )
        return _quietly(["Orthanc", str(config)], folder)


class Pynetdicom(Receiver):
    """pynetdicom's storescp with its defaults."""

    def start(self, folder: Path, port: int, associations: int) -> subprocess.Popen[bytes]:
        """Start it."""
        del associations
        command = [sys.executable, "-m", "pynetdicom", "storescp", str(port), "-od", str(folder)]
        return _quietly(command, folder)


RECEIVERS = (
    Ours("this adapter", "file and directory"),
    Ours("this adapter, `durability: none`", "nothing", durability="none"),
    Dcmtk("DCMTK storescp", "nothing"),
    Orthanc("Orthanc", "file"),
    Pynetdicom("pynetdicom storescp", "nothing"),
)


def _quietly(command: list[str], folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)


def await_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a port is open.

    Raises
    ------
    RuntimeError
        If the process ends first, or the port is closed after half a minute.
    """
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            time.sleep(0.5)  # for what it does after it listens
            return
    raise RuntimeError("the receiver does not listen")
