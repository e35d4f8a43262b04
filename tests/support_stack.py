# SPDX-License-Identifier: Apache-2.0
"""A whole adapter in real processes, whose roles a test may stop, kill and start one by one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydicom.uid import CTImageStorage
from redis import Redis

from adapter import heartbeat
from adapter import settings as settings_module
from adapter.core import Adapter, open_adapter
from adapter.dicom.part10 import part10_header, read_file_meta
from adapter.embedded import broker
from adapter.embedded.roles import accepts, own_command, worker_command
from adapter.ledger import configuration
from adapter.models import DicomDestination, EntityKind, Source
from adapter.stages import STAGES, broker_url, password_file
from tests import peers
from tests.support_stages import add_ae_title, encode, make_instance
from tests.support_waiting import eventually

ROLES = ("redis", "scp", "worker")

#: For roles to start in, as many as may start at once on a machine that is busy with other tests.
START_SECONDS = 100.0


def free_port() -> int:
    """Return a free TCP port of loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def merged(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return settings with some of them changed, on every level."""
    result = dict(document)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


class Stack:
    """One adapter: its own Redis, its SCP, and workers.

    Parameters
    ----------
    data : Path
        Its data folder, empty to begin with.
    pipelines : dict
        The embedded platform's pipelines.
    settings : dict
        Further sections of the settings file.
    """

    def __init__(self, data: Path, pipelines: dict[str, Any], **settings: Any) -> None:
        data.mkdir(parents=True, exist_ok=True)
        document = {
            "broker": {"port": free_port()},
            "dicom": {"scp": {"host": "127.0.0.1", "port": free_port(), "processes": 1}},
            "storage": {"watermarkPercent": 100, "reserveSpaceGB": 0, "retentionSeconds": 3600},
            "workers": {"dueWorkPollSeconds": 0.5, "leaseSeconds": 4, "shortConcurrency": 6},
            "pipelines": pipelines,
        }
        self._pipelines = pipelines
        document = merged(document, settings)
        (data / "appsettings.json").write_text(json.dumps({"DicomAdapter": document}))
        self.settings = settings_module.load(data=data)
        self.adapter: Adapter = open_adapter(self.settings, create=True)
        self.environment: dict[str, str] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: list[Any] = []

    def join(self, data: Path, **settings: Any) -> Stack:
        """Return another host of this adapter: its own data folder, ports and roles.

        Redis, ledger, spool and pipelines are the same.
        """
        shared = {
            "broker": {"url": broker_url(self.settings)},
            "database": {"url": self.settings.database_url},
            "storage": {"temporary": str(self.settings.spool_path)},
        }
        return Stack(data, self._pipelines, **merged(settings, shared))

    @property
    def port(self) -> int:
        """The SCP's port."""
        return self.settings.dicom.scp.port

    def start(self, *roles: str) -> Self:
        """Start roles (all of `ROLES` by default) and wait until they work.

        A worker of some stages only is the role ``worker:<stage>,<stage>``.
        """
        self.launch(*roles)
        self.await_ready(*roles)
        return self

    def launch(self, *roles: str) -> None:
        """Start roles (all of `ROLES` by default)."""
        for role in roles or ROLES:
            log = (self.settings.data / f"{role}.log").open("ab")
            self._logs.append(log)
            self._children[role] = subprocess.Popen(
                self._command(role),
                env={**os.environ, **self.settings.environment, **self.environment},
                stdout=log,
                stderr=log,
            )

    def await_ready(self, *roles: str) -> None:
        """Wait until roles work."""
        for role in roles or ROLES:
            eventually(lambda role=role: self._is_ready(role), START_SECONDS)

    def _command(self, role: str) -> Sequence[str]:
        if role == "redis":
            return [str(broker.find_server()), str(broker.prepare(self.settings))]
        if role == "scp":
            return own_command("scp")
        _, _, stages = role.partition(":")
        chosen = stages.split(",") if stages else list(STAGES)
        name = f"{self.settings.data.name}-{role}".replace(":", "-").replace(",", "-")
        return worker_command(chosen, 6, name)

    def _is_ready(self, role: str) -> bool:
        child = self._children[role]
        assert child.poll() is None, f"{role} ended: {self.log(role)[-2000:]}"
        if role == "redis":
            return broker.is_ready(self.settings)
        if role == "scp":
            return accepts("127.0.0.1", self.port)
        return any(beat["pid"] == child.pid for beat in heartbeat.read_all(self.adapter.spool))

    def pid(self, role: str) -> int:
        """Return the process id of a role."""
        return self._children[role].pid

    def log(self, role: str) -> str:
        """Return what a role has written."""
        return (self.settings.data / f"{role}.log").read_text(errors="replace")

    def kill(self, role: str) -> None:
        """End a role by SIGKILL."""
        child = self._children.pop(role)
        child.send_signal(signal.SIGKILL)
        child.wait(10)

    def stop(self, *roles: str) -> list[int]:
        """Stop roles (all by default, Redis last), wait for their end, return their exit codes."""
        codes = []
        for role in roles or sorted(self._children, key="redis".__eq__):
            child = self._children.pop(role)
            child.terminate()
            codes.append(child.wait(START_SECONDS))
        return codes

    def close(self) -> None:
        """End everything."""
        for role in list(self._children):
            self.kill(role)
        self.adapter.close()
        for log in self._logs:
            log.close()

    # -- what a test does to it --------------------------------------------------------------

    def redis(self) -> Redis:
        """Return a client of its Redis."""
        password = password_file(self.settings).read_text().strip()
        return Redis(port=self.settings.broker.port, password=password)

    def configure(self, title: str, calling: str = "MODALITY", **changes: Any) -> int:
        """Add an AE title, and a source that may send to it; return the version."""
        if configuration.find(self.adapter.ledger, EntityKind.SOURCE, calling) is None:
            source = Source(ae_title=calling, host_ip=["127.0.0.1"])
            configuration.put(self.adapter.ledger, EntityKind.SOURCE, source, replace=False)
        version = add_ae_title(self.adapter, title, **changes)
        eventually(lambda: self._in_force(version))
        return version

    def _in_force(self, version: int) -> bool:
        """Return whether every receiving process, and the copy in the spool, has a version."""
        saved = self.adapter.spool.read_configuration()
        found = [
            beat["configuration_version"]
            for beat in heartbeat.read_all(self.adapter.spool)
            if beat["role"] == "scp" and beat["age"] < 3
        ]
        return (
            saved is not None
            and len(found) >= self.settings.dicom.scp.processes
            and min(found, default=0) >= version <= saved["version"]
        )

    def add_destination(self, name: str, port: int) -> None:
        """Add a destination on this machine."""
        entity = DicomDestination(name=name, ae_title=name[:16], host_ip="127.0.0.1", port=port)
        configuration.put(self.adapter.ledger, EntityKind.DESTINATION, entity, replace=False)

    def storescu(
        self, called: str, *paths: Path, calling: str = "MODALITY"
    ) -> subprocess.Popen[str]:
        """Begin to send files or folders with DCMTK's storescu."""
        peers.need("dcmtk")
        return subprocess.Popen(
            ["storescu", "-v", "+sd", "+r", "-R", "-aet", calling, "-aec", called,
             "127.0.0.1", str(self.port), *map(str, paths)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TCP_NODELAY": "1"},
        )  # fmt: skip


def stored(process: subprocess.Popen[str]) -> int:
    """Wait for a storescu, and return how many instances were answered with Success."""
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output[-2000:]
    return output.count("I: Received Store Response (Success)")


def send(stack: Stack, *folders: Path) -> int:
    """Send folders in an association each, all at once, and return how many were stored."""
    return sum([stored(sender) for sender in [stack.storescu("BRAIN", f) for f in folders]])


def write_study(folder: Path, count: int, **same: Any) -> list[Path]:
    """Write `count` small instances of one series as DICOM files, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    model = make_instance(**same)
    paths = []
    for number in range(count):
        ds = make_instance(
            StudyInstanceUID=model.StudyInstanceUID,
            SeriesInstanceUID=model.SeriesInstanceUID,
            PatientID=model.PatientID,
            InstanceNumber=number,
        )
        path = folder / f"{number:04d}.dcm"
        header = part10_header(
            sop_class_uid=CTImageStorage,
            sop_instance_uid=ds.SOPInstanceUID,
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            calling_ae_title="T",
            called_ae_title="T",
        )
        path.write_bytes(header + encode(ds))
        paths.append(path)
    return paths


def data_set_bytes(path: Path) -> bytes:
    """Return a DICOM file's data set as it stands, without its file meta information."""
    with path.open("rb") as file:
        read_file_meta(file)
        return file.read()


class Pacs:
    """DCMTK's storescp as a destination: keeps every file, bit for bit.

    Parameters
    ----------
    folder : Path
        Where it keeps them.
    """

    def __init__(self, folder: Path, port: int | None = None) -> None:
        peers.need("dcmtk")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = port or free_port()
        self._process = subprocess.Popen(
            ["storescp", "+xa", "--bit-preserving", "-uf", "-od", str(folder), str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TCP_NODELAY": "1"},
        )
        eventually(lambda: accepts("127.0.0.1", self.port))

    def files(self) -> list[Path]:
        """Return what arrived."""
        return sorted(path for path in self.folder.iterdir() if path.is_file())

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
