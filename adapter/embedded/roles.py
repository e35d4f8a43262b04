# SPDX-License-Identifier: Apache-2.0
"""The roles of one machine: the command of each, and how to check that it is ready.

The commands are those that run the same role alone (`dicom-adapter scp` and so on).
"""

from __future__ import annotations

import http.client
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from pathlib import Path

from adapter import heartbeat
from adapter.embedded import broker
from adapter.settings import Settings
from adapter.spool import Spool
from adapter.stages import EXPORT, GROUPING, NOTIFICATION, PIPELINE, RECLAMATION, SUBMISSION

#: Niceness of the workers, which gives the SCP priority (nice(2)).
BACKGROUND = 5
REDIS = "redis"
#: The stages with short work, which share one process.
SHORT_STAGES = (NOTIFICATION, GROUPING, SUBMISSION, RECLAMATION)
#: The workers, and the stages of each.
WORKERS = {"short": SHORT_STAGES, "pipeline": (PIPELINE,), "export": (EXPORT,)}

#: Seconds that open work gets when everything stops: less than 30 s together (Redis: 2 s).
_SCP_STOP_SECONDS = 6.0
_WORKER_STOP_SECONDS = 18.0

_TRY_SECONDS = 2.0


@dataclass(frozen=True)
class Role:
    """One child process of the supervisor.

    Attributes
    ----------
    command : sequence of str
        Program (its full path) and arguments.
    ready : callable
        Returns, given its process id, whether the role does its work; called until it is true.
    stop_turn : int
        Order of stopping: roles with a smaller number end before the next ones are stopped.
    stop_seconds : float
        Seconds between SIGTERM and SIGKILL.
    nice : int
        Added to the niceness of the supervisor.
    environment : mapping
        Added to the environment of the supervisor.
    unready : callable, optional
        Called when a process ends before it is ready.
    """

    name: str
    command: Sequence[str]
    ready: Callable[[int], bool]
    stop_turn: int = 1
    stop_seconds: float = 5.0
    nice: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)
    unready: Callable[[], None] | None = None


def own_command(*arguments: str) -> list[str]:
    """Return the command that runs `dicom-adapter` with these arguments."""
    return [sys.executable, "-m", "adapter.cli", *arguments]


def worker_command(stages: Sequence[str], concurrency: int | None, name: str) -> list[str]:
    """Return the command of a worker for some stages.

    Parameters
    ----------
    concurrency : int, optional
        Runs at a time, in all; without it each stage has what the settings say.
    """
    runs = "auto" if concurrency is None else str(concurrency)
    return [
        *(sys.executable, "-m", "celery", "-A", "workers", "worker"),
        *("--queues", ",".join(stages), "--concurrency", runs),
        *("--hostname", f"{name}@%h", "--pool", "threads", "--loglevel", "WARNING"),
        *("--without-gossip", "--without-mingle"),
    ]


def flower_password_file(settings: Settings) -> Path:
    """Return Flower's password file: from the settings, or the one in the data folder."""
    return settings.flower.password_file or settings.data / "flower.password"


def flower_command() -> list[str]:
    """Return the command of Flower."""
    return [sys.executable, "-m", "celery", "-A", "workers", "flower"]


def flower_environment(settings: Settings) -> dict[str, str]:
    """Return Flower's configuration; as environment, because arguments must not show a password."""
    flower = settings.flower
    password = flower.password or broker.secret(flower_password_file(settings))
    return {
        "FLOWER_ADDRESS": flower.host,
        "FLOWER_PORT": str(flower.port),
        "FLOWER_BASIC_AUTH": f"{flower.user}:{password}",
        "FLOWER_READ_ONLY": str(flower.read_only).lower(),
        # What a task is about and what came of it, instead of the message's own id.
        "FLOWER_TASKS_COLUMNS": "name,kwargs,state,result,exception,received,runtime,worker",
    }


def redis_role(settings: Settings) -> Role:
    """Return our own Redis."""
    return Role(
        REDIS,
        [str(broker.find_server()), str(broker.prepare(settings))],
        lambda _pid: broker.is_ready(settings),
        stop_turn=2,
        stop_seconds=2.0,
        unready=partial(broker.start_empty, settings),
    )


def roles(settings: Settings) -> list[Role]:
    """Return the roles of one machine, without Redis."""
    found = [
        Role(
            "scp",
            own_command("scp"),
            lambda _pid: accepts(settings.dicom.scp.host, settings.dicom.scp.port),
            stop_turn=0,
            stop_seconds=_SCP_STOP_SECONDS + 1,
            environment=_stop_limit(settings, _SCP_STOP_SECONDS) | _metrics(settings, "scp"),
        )
    ]
    found += [
        Role(
            name,
            worker_command(stages, None, name),
            partial(_beats, Spool(settings.spool_path)),
            stop_seconds=_WORKER_STOP_SECONDS + 1,
            nice=BACKGROUND,
            environment=_stop_limit(settings, _WORKER_STOP_SECONDS) | _metrics(settings, name),
        )
        for name, stages in WORKERS.items()
    ]
    api, flower = settings.api, settings.flower
    found.append(
        Role(
            "api",
            own_command("api"),
            partial(_serves, api.host, api.port, "/health/live"),
            nice=BACKGROUND,
        )
    )
    if flower.enabled:
        found.append(
            Role(
                "flower",
                flower_command(),
                partial(_serves, flower.host, flower.port, "/healthcheck"),
                nice=BACKGROUND,
            )
        )
    return found


def _stop_limit(settings: Settings, seconds: float) -> dict[str, str]:
    """Return the environment that limits how long a role waits for its open work."""
    seconds = min(seconds, settings.workers.stop_seconds)
    return {"DICOMADAPTER__WORKERS__STOP_SECONDS": str(seconds)}


def metrics_ports(settings: Settings) -> dict[str, int]:
    """Return the port of each role's metrics and probes: the configured port and the next ones."""
    port = settings.metrics.port
    if port is None:
        return {}
    return {name: port + number for number, name in enumerate(("scp", *WORKERS))}


def _metrics(settings: Settings, role: str) -> dict[str, str]:
    ports = metrics_ports(settings)
    return {"DICOMADAPTER__METRICS__PORT": str(ports[role])} if ports else {}


def local(host: str) -> str:
    """Return the address at which this machine reaches a role that listens on `host`."""
    return {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def accepts(host: str, port: int) -> bool:
    """Return whether a TCP connection is accepted."""
    try:
        socket.create_connection((local(host), port), timeout=_TRY_SECONDS).close()
    except OSError:
        return False
    return True


def _serves(host: str, port: int, path: str, _pid: int) -> bool:
    connection = http.client.HTTPConnection(local(host), port, timeout=_TRY_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _beats(spool: Spool, pid: int) -> bool:
    return any(
        beat.get("pid") == pid and beat["age"] < heartbeat.SILENCE_SECONDS
        for beat in heartbeat.read_all(spool)
    )
