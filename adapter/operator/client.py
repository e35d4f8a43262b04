# SPDX-License-Identifier: Apache-2.0
"""The API server: list, watch, and patch the status of custom resources; read and write a Secret.

The service account's token is read again for each request, because Kubernetes replaces it hourly.
Everything that a server may send is bounded: lists come in pages, lines have a maximum length.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx

from adapter.errors import ConfigurationError, TemporaryError
from adapter.operator.resources import GROUP, VERSION, ResourceKind
from adapter.settings import Settings

#: Resources in one page of a list.
_PAGE = 250
#: Longest answer, and longest line of a watch, in bytes; an object has at most 1.5 MB in etcd.
_LONGEST = 16_000_000
_LONGEST_LINE = 4_000_000
#: Pages of one list; far more resources than an adapter needs.
_MOST_PAGES = 100
#: TCP keep-alive: seconds of silence before the first probe, between probes, and their number.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


class Gone(TemporaryError):
    """The server no longer knows the requested version: list again."""


class Missing(TemporaryError):
    """The resource does not exist (any more)."""


class RequestBroken(TemporaryError):
    """A watch sent something unreadable."""


class WatchEvent(NamedTuple):
    """One event of a watch.

    Attributes
    ----------
    type : str
        ADDED, MODIFIED, DELETED or BOOKMARK.
    item : dict
        The resource; of a bookmark, only its version.
    version : str
        The version to continue the watch from.
    """

    type: str
    item: dict[str, Any]
    version: str


class KubernetesClient:
    """A connection to the API server, for one namespace.

    Parameters
    ----------
    settings : Settings
        Its address and credentials.

    Raises
    ------
    ConfigurationError
        If no server or no namespace is configured or found.
    """

    def __init__(self, settings: Settings) -> None:
        kubernetes = settings.kubernetes
        self._seconds = kubernetes.request_seconds
        self._folder = kubernetes.credentials
        url = settings.kubernetes_url
        namespace = kubernetes.namespace or self._text("namespace")
        problems = []
        if url is None:
            problems.append(
                "DicomAdapter > kubernetes > endpoint: needed, because this is no pod of a cluster"
            )
        if namespace is None:
            problems.append(
                "DicomAdapter > kubernetes > namespace: needed, because there is no "
                f"{self._folder / 'namespace'}"
            )
        if url is None or namespace is None:
            raise ConfigurationError(problems)
        self.namespace = namespace
        self._base = f"{url.rstrip('/')}/apis/{GROUP}/{VERSION}/namespaces/{namespace}"
        self._secrets = f"{url.rstrip('/')}/api/v1/namespaces/{namespace}/secrets"
        self._http = httpx.Client(
            timeout=self._seconds,
            trust_env=False,
            transport=httpx.HTTPTransport(
                verify=_tls(self._folder),
                socket_options=[
                    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
                    *((socket.IPPROTO_TCP, option, value) for option, value in _KEEPALIVE),
                ],
            ),
        )
        self._streams: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """End every watch at once, and close the connections."""
        with self._lock:
            self._closed = True
            for stream in self._streams:
                with suppress(OSError):
                    stream.shutdown(socket.SHUT_RDWR)
        self._http.close()

    def list(self, kind: ResourceKind) -> tuple[list[Any], str]:
        """Return all resources of a kind, and the version to watch from.

        Raises
        ------
        TemporaryError
            If they cannot be listed now; the text says why.
        """
        items: list[Any] = []
        query: dict[str, Any] = {"limit": _PAGE}
        for _ in range(_MOST_PAGES):
            page = self._exchange("GET", kind.plural, query, f"list {kind.plural}")
            try:
                items += page["items"]
                version = str(page["metadata"]["resourceVersion"])
                following = page["metadata"].get("continue")
            except (KeyError, TypeError, AttributeError):
                raise TemporaryError(
                    "the API server answered with something else than a list"
                ) from None
            if not following:
                return items, version
            query = {"limit": _PAGE, "continue": following}
        raise TemporaryError(f"there are too many {kind.plural}")

    @contextmanager
    def watch(
        self, kind: ResourceKind, version: str, seconds: int
    ) -> Iterator[Iterator[WatchEvent]]:
        """Provide the events of a kind since a version; they end after `seconds`.

        Raises
        ------
        Gone
            If the server no longer knows the version.
        RequestBroken
            If the server sent something else than an event.
        TemporaryError
            If the server cannot be watched now.
        """
        query = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": seconds,
        }
        timeout = httpx.Timeout(self._seconds, read=seconds + self._seconds)
        what = f"watch {kind.plural}"
        with self._send("GET", kind.plural, query, what, timeout=timeout) as response:
            yield _events(response)

    def patch_status(self, kind: ResourceKind, name: str, status: dict[str, Any]) -> Any:
        """Write the status of a resource, and return the updated resource.

        Raises
        ------
        Missing
            If the resource is gone.
        TemporaryError
            If the server did not accept it; the text says why.
        """
        path = f"{kind.plural}/{quote(name, safe='')}/status"
        what = f"patch the status of {kind.plural}"
        return self._exchange("PATCH", path, {}, what, {"status": status})

    def get_secret(self, name: str) -> Any:
        """Return a Secret.

        Raises
        ------
        Missing
            If there is none.
        TemporaryError
            If it cannot be read now; the text says why.
        """
        return self._exchange("GET", f"{self._secrets}/{quote(name, safe='')}", {}, "get a secret")

    def create_secret(self, name: str, data: dict[str, str]) -> None:
        """Create a Secret; values are Base64.

        Raises
        ------
        TemporaryError
            If it cannot be created, e.g. since it exists.
        """
        labels = {"app.kubernetes.io/part-of": "dicom-adapter"}
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": {"name": name, "labels": labels},
            "data": data,
        }
        self._exchange("POST", self._secrets, {}, "create a secret", body)

    def add_to_secret(self, name: str, data: dict[str, str], version: str) -> None:
        """Add values to a Secret, if it still is of the version that was read.

        Raises
        ------
        TemporaryError
            If it has changed meanwhile, or cannot be written.
        """
        body = {"metadata": {"resourceVersion": version}, "data": data}
        path = f"{self._secrets}/{quote(name, safe='')}"
        self._exchange("PATCH", path, {}, "patch a secret", body)

    def _exchange(
        self, method: str, path: str, query: dict[str, Any], what: str, body: Any | None = None
    ) -> Any:
        deadline = time.monotonic() + self._seconds
        with self._send(method, path, query, what, body=body) as response:
            content = bytearray()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > _LONGEST:
                    raise TemporaryError("the API server's answer is too long")
                if time.monotonic() > deadline:
                    raise TemporaryError("the API server's answer takes too long")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise TemporaryError("the API server answered with something else than JSON") from None

    @contextmanager
    def _send(
        self,
        method: str,
        path: str,
        query: dict[str, Any],
        what: str,
        *,
        body: Any | None = None,
        timeout: httpx.Timeout | None = None,
    ) -> Iterator[httpx.Response]:
        headers = {"Accept": "application/json"}
        if (token := self._text("token")) is not None:
            headers["Authorization"] = f"Bearer {token}"
        content = None
        if body is not None:
            patch = method == "PATCH"
            headers["Content-Type"] = f"application/{'merge-patch+json' if patch else 'json'}"
            content = json.dumps(body).encode()
        try:
            with (
                self._http.stream(
                    method,
                    path if path.startswith(("http:", "https:")) else f"{self._base}/{path}",
                    params=query,
                    headers=headers,
                    content=content,
                    timeout=timeout or self._seconds,
                ) as response,
                self._noted(response),
            ):
                if not response.is_success:
                    raise _refusal(response, what)
                yield response
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, RuntimeError) as error:
            # RuntimeError: the client was closed meanwhile.
            raise TemporaryError(
                f"the API server cannot be asked ({type(error).__name__})"
            ) from None

    @contextmanager
    def _noted(self, response: httpx.Response) -> Iterator[None]:
        """Register the connection of a response, so that `close` can end it."""
        stream: socket.socket = response.extensions["network_stream"].get_extra_info("socket")
        with self._lock:
            if self._closed:
                raise TemporaryError("the connection to the API server is closed")
            self._streams.add(stream)
        try:
            yield
        finally:
            with self._lock:
                self._streams.discard(stream)

    def _text(self, name: str) -> str | None:
        try:
            return (self._folder / name).read_text(encoding="utf-8").strip() or None
        except (OSError, UnicodeDecodeError):
            return None


def _tls(folder: Path) -> ssl.SSLContext:
    authority = folder / "ca.crt"
    context = ssl.create_default_context(cafile=str(authority) if authority.exists() else None)
    if (folder / "tls.crt").exists():
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return context


def _events(response: httpx.Response) -> Iterator[WatchEvent]:
    rest = b""
    for chunk in response.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield _event(line)
        if len(rest) > _LONGEST_LINE:
            raise RequestBroken("the API server sent a line that is too long")
    # The rest after the last line is an incomplete event: the next watch gets it again.


def _event(line: bytes) -> WatchEvent:
    try:
        document = json.loads(line)
        if document["type"] == "ERROR":
            code = int(document["object"]["code"])
        else:
            item = document["object"]
            return WatchEvent(document["type"], item, str(item["metadata"]["resourceVersion"]))
    except (ValueError, RecursionError, KeyError, TypeError):
        raise RequestBroken("the API server sent something else than an event") from None
    if code == httpx.codes.GONE:
        raise Gone("the API server no longer knows the version that was watched from")
    raise TemporaryError(f"the API server ended a watch with {code}")


def _refusal(response: httpx.Response, what: str) -> TemporaryError:
    """Return the error for a status code, with advice."""
    code = response.status_code
    if code == httpx.codes.GONE:
        return Gone("the API server no longer knows the version that was asked for")
    if code == httpx.codes.NOT_FOUND:
        return Missing(f"the API server knows nothing to {what}; is the definition installed?")
    text = f"the API server answered {code} to {what}"
    if code == httpx.codes.UNAUTHORIZED:
        text = f"the API server does not accept the token (to {what})"
    elif code == httpx.codes.FORBIDDEN:
        text = f"the Role of the service account does not allow to {what}"
    delay = None
    with suppress(ValueError):
        delay = float(response.headers.get("Retry-After", ""))
    return TemporaryError(text, delay)
