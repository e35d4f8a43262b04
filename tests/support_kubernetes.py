# SPDX-License-Identifier: Apache-2.0
"""A small API server on loopback that serves the chart's custom resources, and what `kubectl` does.

It has what the operator relies on: one counter of versions and a log of events, list in pages and
watch from a version, bookmarks, 410 once the log was compacted, ``timeoutSeconds``, the status as a
subresource (a change of the spec raises the generation, one of the status does not), merge patches,
the definitions' schemas, and a Role.  Tests can make it fail.
"""

from __future__ import annotations

import json
import os
import ssl
import threading
import time
import uuid
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import yaml

from adapter.settings import Pipeline, Settings
from tests import support_scp
from tests.support_custom_resources import definitions

#: Waits for what takes two seconds at most on a machine that has nothing else to do.
eventually = partial(support_scp.eventually, timeout=15.0)

GROUP = "dicom.adapter.io"
NAMESPACE = "imaging"
ADMIN, OPERATOR = "admin-token", "operator-token"
PLURALS = {found.plural: found for found in definitions().values()}
#: What the operator does, as a Role says it.
RULES: list[dict[str, list[str]]] = [
    {"apiGroups": [GROUP], "resources": sorted(PLURALS), "verbs": ["list", "watch"]},
    {
        "apiGroups": [GROUP],
        "resources": [f"{plural}/status" for plural in sorted(PLURALS)],
        "verbs": ["patch"],
    },
]


@dataclass
class Fault:
    """What goes wrong with the next requests of one verb (each `times`)."""

    verb: str
    code: int = 0  #: answer with this status, e.g. 429
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None  #: a watch sends this first, and ends
    half_event: bool = False  #: a watch breaks in the middle of its next event
    byte_seconds: float = 0.0  #: seconds between the bytes of the answer
    times: int = 1


class ApiServer:
    """The server; `start` and `stop` it as often as needed, it keeps what it holds."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[dict[str, list[str]]] | None] = {ADMIN: None, OPERATOR: RULES}
        self.requests: list[tuple[str, str]] = []  #: (verb, resource) of the operator, in order
        self.faults: list[Fault] = []
        self.changed = threading.Condition()
        self.version = 100
        self.compacted = 0
        self.bookmark_seconds = 0.5
        self.objects: dict[str, dict[str, Any]] = {plural: {} for plural in PLURALS}
        self.log: list[tuple[int, str, str, Any]] = []
        self.port = 0
        self.tls: ssl.SSLContext | None = None
        self._http: ThreadingHTTPServer | None = None
        self._open: set[Any] = set()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def start(self) -> None:
        http = ThreadingHTTPServer(("127.0.0.1", self.port), _Handler)
        http.daemon_threads = True
        http.api = self  # type: ignore[attr-defined]
        if self.tls:
            http.socket = self.tls.wrap_socket(http.socket, server_side=True)
        self._http, self.port = http, http.server_address[1]
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        http, self._http = self._http, None
        if http is not None:
            http.shutdown()
            http.server_close()
            self.drop_connections()

    def drop_connections(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(2)

    def compact(self) -> None:
        """Forget the log, as etcd does every five minutes; watches that run go on."""
        with self.changed:
            self.version += 1
            self.compacted = self.version

    def fault_for(self, verb: str) -> Fault | None:
        with self.changed:
            for fault in self.faults:
                if fault.verb == verb and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def record(self, kind: str, plural: str, item: Any) -> Any:
        """Give an object its next version and log the event; call it with `changed` held."""
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        self.log.append((self.version, plural, kind, deepcopy(item)))
        self.changed.notify_all()
        return item

    def events(self, plural: str, since: int) -> list[tuple[int, str, str, Any]]:
        return [entry for entry in self.log if entry[0] > since and entry[1] == plural]


class _Refusal(Exception):
    def __init__(self, code: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.headers = headers or {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Any

    def log_message(self, *_arguments: Any) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        self.server.api._open.add(self.connection)

    def finish(self) -> None:
        self.server.api._open.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - http.server's names

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        try:
            self._serve(body)
        except _Refusal as refusal:
            document = _status(refusal.code, str(refusal))
            self._send(refusal.code, document, headers=refusal.headers)

    def _serve(self, body: Any) -> None:
        api: ApiServer = self.server.api
        parts = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        where = parts.path.split("/")
        if where[:5] != ["", "apis", GROUP, "v1", "namespaces"] or where[6] not in PLURALS:
            raise _Refusal(404, "there is no such path")
        namespace, plural, *rest = where[5:]
        verb = self._verb(query, named=bool(rest))
        self._allow(verb, "/".join([plural, *rest[1:]]), namespace)
        fault = None if self._is_admin() else api.fault_for(verb)
        if fault and fault.code:
            raise _Refusal(fault.code, "a fault of the test", fault.headers)
        if verb == "watch":
            self._watch(plural, query, fault)
        elif verb == "list":
            self._list(plural, query, fault)
        else:
            self._send(200, self._change(verb, plural, namespace, rest, body), fault)

    def _verb(self, query: dict[str, str], *, named: bool) -> str:
        if self.command == "GET" and not named:
            return "watch" if query.get("watch") == "true" else "list"
        return {"GET": "get", "POST": "create", "PUT": "update"}.get(
            self.command, self.command.lower()
        )

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _is_admin(self) -> bool:
        return self._token() == ADMIN

    def _allow(self, verb: str, resource: str, namespace: str) -> None:
        api: ApiServer = self.server.api
        if self._token() not in api.tokens:
            raise _Refusal(401, "the token is not accepted")
        rules = api.tokens[self._token()]
        if not self._is_admin():
            api.requests.append((verb, resource))
        if rules is not None and not (
            namespace == NAMESPACE
            and any(
                GROUP in rule["apiGroups"]
                and resource in rule["resources"]
                and verb in rule["verbs"]
                for rule in rules
            )
        ):
            raise _Refusal(403, f"the Role does not allow to {verb} {resource}")

    def _change(
        self, verb: str, plural: str, namespace: str, rest: list[str], body: Any
    ) -> dict[str, Any]:
        api: ApiServer = self.server.api
        with api.changed:
            known = api.objects[plural].get(rest[0] if rest else body["metadata"]["name"])
            if rest and known is None:
                raise _Refusal(404, "there is no such object")
            if verb == "get":
                return known
            if verb == "delete":
                del api.objects[plural][rest[0]]
                return api.record("DELETED", plural, known)
            if verb == "create":
                if known is not None:
                    raise _Refusal(409, "it exists already")
                body.pop("status", None)
                metadata = {
                    **body["metadata"],
                    "namespace": namespace,
                    "uid": str(uuid.uuid4()),
                    "generation": 1,
                    "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                }
                item = {**body, "metadata": metadata}
            else:
                item = _patched(known, body, status=rest[1:] == ["status"])
            item = PLURALS[plural].with_defaults(item)
            if problems := PLURALS[plural].problems(item):
                raise _Refusal(422, "; ".join(problems))
            if known is not None and known == item:
                return known
            api.objects[plural][item["metadata"]["name"]] = item
            return api.record("ADDED" if known is None else "MODIFIED", plural, item)

    def _list(self, plural: str, query: dict[str, str], fault: Fault | None) -> None:
        api: ApiServer = self.server.api
        with api.changed:
            items = [api.objects[plural][name] for name in sorted(api.objects[plural])]
            version = str(api.version)
            begin, limit = int(query.get("continue", 0)), int(query.get("limit", 500))
            metadata = {"resourceVersion": version}
            if begin + limit < len(items):
                metadata["continue"] = str(begin + limit)
            document = deepcopy({"metadata": metadata, "items": items[begin : begin + limit]})
        self._send(200, document, fault)

    def _watch(self, plural: str, query: dict[str, str], fault: Fault | None) -> None:
        api: ApiServer = self.server.api
        since = int(query["resourceVersion"])
        end = time.monotonic() + float(query["timeoutSeconds"])
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if since < api.compacted:
            self._chunk(_line("ERROR", _status(410, "too old resource version")))
            self._chunk(b"")
            return
        if fault and fault.raw is not None:
            self._chunk(fault.raw)
        while not (fault and fault.raw is not None) and time.monotonic() < end:
            with api.changed:
                seconds = min(api.bookmark_seconds, end - time.monotonic())
                if not api.events(plural, since):
                    api.changed.wait(seconds)
                found = api.events(plural, since)
                since = max(since, api.version)
            if api._http is None:
                return
            for _, _, kind, item in found:
                line = _line(kind, item)
                if fault and fault.half_event:
                    self._chunk(line[: len(line) // 2])
                    self.close_connection = True
                    return
                self._chunk(line, fault.byte_seconds if fault else 0.0)
            if not found and query.get("allowWatchBookmarks") == "true":
                self._chunk(_line("BOOKMARK", {"metadata": {"resourceVersion": str(since)}}))
        self._chunk(b"")

    def _chunk(self, data: bytes, byte_seconds: float = 0.0) -> None:
        pieces = [data[at : at + 1] for at in range(len(data))] if byte_seconds else [data]
        for piece in pieces:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
            time.sleep(byte_seconds)

    def _send(
        self,
        code: int,
        document: Any,
        fault: Fault | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        content = json.dumps(document).encode()
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if fault and fault.byte_seconds:
            for at in range(len(content)):
                self.wfile.write(content[at : at + 1])
                time.sleep(fault.byte_seconds)
        else:
            self.wfile.write(content)


def _status(code: int, message: str) -> dict[str, Any]:
    return {"kind": "Status", "status": "Failure", "code": code, "message": message}


def _line(kind: str, item: Any) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def _patched(known: dict[str, Any], body: Any, *, status: bool) -> dict[str, Any]:
    """A merge patch (RFC 7386), of the status or of everything but the status."""
    item = deepcopy(known)
    if status:
        item["status"] = _merged(known.get("status"), body.get("status"))
        return item
    item["spec"] = _merged(known["spec"], body.get("spec", {}))
    if item["spec"] != known["spec"]:
        item["metadata"]["generation"] += 1
    return item


def _merged(target: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged


class Kubectl:
    """What a person does to the custom resources, on this server or on a real one."""

    def __init__(self, url: str, credentials: Path, namespace: str) -> None:
        self.url, self.credentials, self.namespace = url, credentials, namespace
        token = credentials / "token"
        authority = credentials / "ca.crt"
        context = ssl.create_default_context(cafile=authority if authority.exists() else None)
        if (credentials / "tls.crt").exists():
            context.load_cert_chain(credentials / "tls.crt", credentials / "tls.key")
        self.http = httpx.Client(
            verify=context,
            trust_env=False,
            headers={"Authorization": f"Bearer {token.read_text()}"} if token.exists() else {},
        )

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        answer = self.http.request(method, self.url + path, json=body, headers=headers)
        if not answer.is_success:
            raise AssertionError(f"{answer.status_code}: {answer.json()['message']}")
        return answer.json()

    def path(self, kind: str, name: str = "") -> str:
        plural = definitions()[kind].plural
        return f"/apis/{GROUP}/v1/namespaces/{self.namespace}/{plural}/{name}".rstrip("/")

    def create(self, kind: str, name: str, /, **spec: Any) -> Any:
        metadata = {"name": name, "namespace": self.namespace}
        body = {"apiVersion": f"{GROUP}/v1", "kind": kind, "metadata": metadata, "spec": spec}
        return self.request("POST", self.path(kind) + "?fieldValidation=Strict", body)

    def edit(self, kind: str, name: str, /, **spec: Any) -> Any:
        """Change keys of the spec; None takes one away."""
        path = self.path(kind, name) + "?fieldValidation=Strict"
        return self.request(
            "PATCH", path, {"spec": spec}, **{"Content-Type": "application/merge-patch+json"}
        )

    def delete(self, kind: str, name: str) -> None:
        self.request("DELETE", self.path(kind, name))

    def get(self, kind: str, name: str) -> Any:
        return self.request("GET", self.path(kind, name))

    def names(self, kind: str) -> list[str]:
        return [item["metadata"]["name"] for item in self.request("GET", self.path(kind))["items"]]

    def ready(self, kind: str, name: str) -> dict[str, Any] | None:
        """The condition Ready, if it is about the present generation."""
        item = self.get(kind, name)
        for condition in item.get("status", {}).get("conditions", []):
            current = condition["observedGeneration"] == item["metadata"]["generation"]
            if condition["type"] == "Ready" and current:
                return condition
        return None

    def becomes(self, kind: str, name: str, reason: str) -> str:
        """Wait until a resource is Ready, or not, for this reason; return the message."""

        def look() -> dict[str, Any] | None:
            ready = self.ready(kind, name)
            return ready if ready and ready["reason"] == reason else None

        condition = eventually(look)
        assert condition["status"] == ("True" if reason == "Applied" else "False")
        return str(condition["message"])

    def clear(self) -> None:
        for kind in definitions():
            for name in self.names(kind):
                self.delete(kind, name)


def write_credentials(folder: Path, token: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text(token, encoding="utf-8")
    (folder / "namespace").write_text(NAMESPACE, encoding="utf-8")
    return folder


def for_operator(settings: Settings, kubectl: Kubectl, credentials: Path) -> Settings:
    """Settings of an operator that is quick to try again; a real server has one user for both.

    There are the pipelines that the tests' AE titles name.
    """
    kubernetes = settings.kubernetes.model_copy(
        update={
            "endpoint": kubectl.url,
            "credentials": credentials if credentials.exists() else kubectl.credentials,
            "namespace": kubectl.namespace,
            "retry_minimum_seconds": 0.1,
            "retry_maximum_seconds": 0.5,
        }
    )
    pipelines = {
        key: Pipeline.model_validate({"name": key, "command": ["true"], "export": False})
        for key in ("lung", "lung-1")
    }
    return settings.model_copy(update={"kubernetes": kubernetes, "pipelines": pipelines})


def real_cluster(folder: Path) -> Kubectl | None:
    """The server of ADAPTER_TEST_KUBECONFIG, if there is one, with the definitions installed."""
    if not (path := os.environ.get("ADAPTER_TEST_KUBECONFIG")):
        return None
    config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    named = {
        section: {item["name"]: item[section.removesuffix("s")] for item in config[section]}
        for section in ("contexts", "clusters", "users")
    }
    context = named["contexts"][config["current-context"]]
    cluster, user = named["clusters"][context["cluster"]], named["users"][context["user"]]
    folder.mkdir(exist_ok=True)
    for file, section, key in (
        ("ca.crt", cluster, "certificate-authority-data"),
        ("tls.crt", user, "client-certificate-data"),
        ("tls.key", user, "client-key-data"),
    ):
        if key in section:
            (folder / file).write_bytes(b64decode(section[key]))
    if "token" in user:
        (folder / "token").write_text(user["token"], encoding="utf-8")
    kubectl = Kubectl(cluster["server"], folder, context.get("namespace", "default"))
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    for definition in definitions().values():
        with suppress(AssertionError):  # it is there already
            kubectl.request("POST", crds, definition.document)
    eventually(lambda: _serves(kubectl), timeout=30)
    return kubectl


def _serves(kubectl: Kubectl) -> bool:
    try:
        kubectl.clear()
    except AssertionError:
        return False
    return True


@contextmanager
def some_cluster(folder: Path) -> Iterator[Kubectl]:
    """Provide a real cluster if there is one, else our own, and credentials for an operator."""
    real = real_cluster(folder / "real")
    if real is not None:
        yield real
        real.clear()
        real.http.close()
        return
    with fake_cluster(folder / "admin") as (_, fake):
        write_credentials(folder / "operator", OPERATOR)
        yield fake


@contextmanager
def fake_cluster(
    folder: Path, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[ApiServer, Kubectl]]:
    server = ApiServer()
    server.tls = tls
    server.start()
    kubectl = Kubectl(server.url, write_credentials(folder, ADMIN), NAMESPACE)
    try:
        yield server, kubectl
    finally:
        kubectl.http.close()
        server.stop()
