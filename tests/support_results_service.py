# SPDX-License-Identifier: Apache-2.0
"""A small Results Service on loopback, with the original's REST contract, and its bad days."""

from __future__ import annotations

import json
import threading
from collections import deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4


def make_task(uris, parameters='"PACS"', retries=0, **changes):
    """Return a task as the original's service writes it."""
    return {
        "taskId": str(uuid4()),
        "jobId": str(uuid4()),
        "pipelineId": str(uuid4()),
        "payloadId": str(uuid4()),
        "parameters": parameters,
        "state": "Pending",
        "agent": "ClaraSCU",
        "retries": retries,
        "uris": uris,
    } | changes


class FakeResultsService:
    """Tasks by id, each pending until its success or last failure is reported.

    Attributes
    ----------
    reports : list of (str, str, object)
        Every PUT that was taken: "success" or "failure", the task, and RetryLater.
    bad_days : deque of callables
        Each is given one request instead of its being answered.
    """

    def __init__(self):
        self.tasks = {}
        self.reports = []
        self.requests = []
        self.bad_days = deque()
        self.forgetful = False  # True: what is reported stays pending
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                service._get(self)

            def do_PUT(self):
                service._put(self)

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        #: Ends requests that hang.
        self.closing = threading.Event()

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(self, *tasks):
        """Make tasks pending, and return their ids."""
        self.tasks.update({task["taskId"]: task for task in tasks})
        return [task["taskId"] for task in tasks]

    def _bad_day(self, request):
        self.requests.append((request.command, request.path))
        if self.bad_days:
            with suppress(OSError):
                self.bad_days.popleft()(request)
            return True
        return False

    def _get(self, request):
        if self._bad_day(request):
            return
        url = urlsplit(request.path)
        if url.path != "/api/tasks/ClaraSCU/pending":
            answer(request, 404, {})
            return
        size = int(parse_qs(url.query)["size"][0])
        answer(request, 200, list(self.tasks.values())[:size])

    def _put(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if self._bad_day(request):
            return
        *start, verb, task = urlsplit(request.path).path.split("/")
        if start != ["", "api", "tasks"] or verb not in {"success", "failure"}:
            answer(request, 404, {})
            return
        retry_later = None if verb == "success" else json.loads(body)["RetryLater"]
        if verb == "success":
            assert body == b""
        self.reports.append((verb, task, retry_later))
        if not self.forgetful:
            found = self.tasks.pop(task, None)
            if retry_later and found:
                self.tasks[task] = found | {"retries": found["retries"] + 1}
        answer(request, 200, {})


def answer(request, status, document):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    request.send_response(status)
    request.send_header("Content-Type", "application/json")
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def error(request):
    """Answer that it has failed."""
    answer(request, 500, {})


def hang_up(request):
    """Close the connection without an answer."""
    request.close_connection = True


def garbage(request):
    """Answer with something else than JSON."""
    answer(request, 200, b"<html>not what you asked for</html>")


def nested(request):
    """Answer with JSON that is nested very deep."""
    answer(request, 200, b"[" * 100_000)


def not_a_list(request):
    """Answer with a JSON object."""
    answer(request, 200, {"tasks": []})
