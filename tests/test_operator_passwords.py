# SPDX-License-Identifier: Apache-2.0
"""A Secret gets the passwords that it lacks, once, whoever else writes it meanwhile."""

from __future__ import annotations

import json
import threading
from base64 import b64decode
from collections.abc import Iterator
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from adapter.errors import TemporaryError
from adapter.operator import create_passwords, passwords
from adapter.settings import Settings
from tests.support_kubernetes import NAMESPACE, write_credentials

SECRETS = f"/api/v1/namespaces/{NAMESPACE}/secrets"


class Server(ThreadingHTTPServer):
    """An API server for Secrets that keeps to their versions."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.secrets: dict[str, Any] = {}
        self.requests: list[str] = []
        self.race: Any = None  #: called once before the next write
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def put(self, name: str, **values: str) -> None:
        """Write into a Secret as somebody else."""
        known = self.secrets.setdefault(name, {"metadata": {"resourceVersion": "0"}, "data": {}})
        known["data"] |= values
        known["metadata"]["resourceVersion"] += "1"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_arguments: Any) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        known = self.server.secrets.get(self.path.removeprefix(f"{SECRETS}/"))
        self._answer(404 if known is None else 200, known)

    def do_POST(self) -> None:
        body = self._body()
        assert self.path == SECRETS
        name = body["metadata"]["name"]
        if name in self.server.secrets:
            return self._answer(409)
        self.server.put(name, **body["data"])
        return self._answer(201, body)

    def do_PATCH(self) -> None:
        body = self._body()
        name = self.path.removeprefix(f"{SECRETS}/")
        known = self.server.secrets[name]
        if body["metadata"]["resourceVersion"] != known["metadata"]["resourceVersion"]:
            return self._answer(409)
        self.server.put(name, **body["data"])
        return self._answer(200, known)

    def _body(self) -> Any:
        race, self.server.race = self.server.race, None
        if race is not None:
            race()
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, code: int, body: Any = None) -> None:
        self.server.requests.append(self.command)
        assert self.headers["Authorization"] == "Bearer t0ken"
        data = json.dumps(body or {}).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def there(settings: Settings, server: Server, tmp_path: Path) -> Settings:
    """The settings of a pod that may write Secrets."""
    update = {
        "endpoint": f"http://127.0.0.1:{server.server_address[1]}",
        "credentials": write_credentials(tmp_path / "account", "t0ken"),
        "namespace": NAMESPACE,
    }
    return settings.model_copy(update={"kubernetes": settings.kubernetes.model_copy(update=update)})


def test_passwords_are_made_once(there: Settings, server: Server) -> None:
    """A second run changes nothing; one that is asked for later is added, beside the others."""
    assert create_passwords(there, "own", ["redis", "database"]) == ["redis", "database"]
    made = deepcopy(server.secrets["own"]["data"])
    texts = {b64decode(value).decode() for value in made.values()}
    assert len(texts) == 2
    assert all(len(text) >= 32 and text.isascii() for text in texts)

    assert create_passwords(there, "own", ["redis", "database"]) == []
    assert create_passwords(there, "own", ["redis", "flower"]) == ["flower"]
    assert server.requests == ["GET", "POST", "GET", "GET", "PATCH"]
    assert server.secrets["own"]["data"].items() > made.items()


@pytest.mark.parametrize("before", [{}, {"redis": "b2xk"}])
def test_whoever_was_faster_wins(there: Settings, server: Server, before: dict[str, str]) -> None:
    """Two jobs, as during an upgrade, agree on what was written first."""
    if before:
        server.put("own", **before)
    server.race = lambda: server.put("own", flower="dGhlaXJz")

    create_passwords(there, "own", ["redis", "flower"], pause=0)

    data = server.secrets["own"]["data"]
    assert data["flower"] == "dGhlaXJz"
    assert data["redis"] == before.get("redis", data["redis"])


def test_a_server_that_stays_away_is_told(
    there: Settings, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job fails in the end, and is run again by Kubernetes."""
    monkeypatch.setattr(passwords, "_TRIES", 2)
    server.shutdown()
    server.server_close()

    with pytest.raises(TemporaryError, match="the API server cannot be asked"):
        create_passwords(there, "own", ["redis"], pause=0)
