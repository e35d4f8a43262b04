# SPDX-License-Identifier: Apache-2.0
"""The Results Service: where tasks come from, and who is told what became of them.

Two implementations of one seam: the ledger itself, for pipelines of the embedded platform, and the
original's REST contract::

    GET  {endpoint}/api/tasks/{agent}/pending?size=N
    PUT  {endpoint}/api/tasks/success/{task}
    PUT  {endpoint}/api/tasks/failure/{task}       {"RetryLater": true | false}

A REST task is first written into the ledger by its id, and exported from there.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from functools import cached_property
from typing import Any, Protocol
from urllib.parse import quote

import httpx

from adapter import stages
from adapter.background import BackgroundLoop
from adapter.core import Adapter
from adapter.errors import TemporaryError
from adapter.ledger import configuration, remote_tasks
from adapter.ledger.remote_tasks import Report
from adapter.log import get_logger
from adapter.models import EntityKind
from adapter.settings import Settings
from adapter.stages import StageQueues
from workers.clients.task import read_task

log = get_logger(__name__)

#: Tasks asked for at first, and at most when all of those are known already.
PAGE, LONGEST_PAGE = 10, 1280
_LONGEST_ANSWER = 64_000_000


class ResultsService(Protocol):
    """What the export stage asks of a Results Service."""

    def pending(self, size: int) -> list[Any]:
        """Return at most `size` tasks that wait for our agent, as they come, unchecked."""

    def report(self, report: Report) -> None:
        """Tell what became of a task.

        Raises
        ------
        TemporaryError
            If it was not taken.
        """


class LedgerResultsService:
    """The ledger as Results Service: its tasks are there already, and nothing is owed for them."""

    def pending(self, size: int) -> list[Any]:  # noqa: ARG002 - the seam's signature
        """Return nothing: the tasks of our own jobs are born in the ledger."""
        return []

    def report(self, report: Report) -> None:
        """Refuse the report of a task that came from elsewhere, until somebody can take it."""
        raise TemporaryError(
            f"no Results Service is configured to take the report of {report.task}"
        )


class RestResultsService:
    """A Results Service that speaks the original's REST contract.

    Parameters
    ----------
    endpoint : str
        Its URL.
    agent : str
        The name that our tasks are kept under.
    seconds : float
        Seconds that a request may take, from the look-up of the name to the last byte.
    """

    def __init__(self, endpoint: str, agent: str, seconds: float) -> None:
        self._base = f"{endpoint.rstrip('/')}/api/tasks"
        self._agent = agent
        self._seconds = seconds

    def pending(self, size: int) -> list[Any]:
        """Return at most `size` tasks that wait for our agent, as they come, unchecked."""
        url = f"{self._base}/{quote(self._agent, safe='')}/pending?size={size}"
        try:
            answer = json.loads(self._request("GET", url))
        except (ValueError, RecursionError):
            raise TemporaryError(
                "the Results Service answered with something else than JSON"
            ) from None
        if not isinstance(answer, list):
            raise TemporaryError("the Results Service answered with something else than a list")
        return answer

    def report(self, report: Report) -> None:
        """Tell what became of a task."""
        task = quote(report.task, safe="")
        if report.success:
            self._request("PUT", f"{self._base}/success/{task}")
        else:
            body = {"RetryLater": report.retry_later}
            self._request("PUT", f"{self._base}/failure/{task}", body)

    def _request(self, method: str, url: str, body: Any = None) -> bytes:
        try:
            return asyncio.run(self._exchange(method, url, body))
        except TimeoutError:
            raise TemporaryError(
                f"the Results Service did not answer in {self._seconds:g} s"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise TemporaryError(
                f"the Results Service cannot be asked ({type(error).__name__})"
            ) from None

    async def _exchange(self, method: str, url: str, body: Any) -> bytes:
        """Exchange a request for its answer's body: all of it in time, and of bounded length."""
        async with (
            asyncio.timeout(self._seconds),  # httpx alone would wait for each byte anew
            httpx.AsyncClient(timeout=self._seconds, verify=self._tls, trust_env=False) as client,
            client.stream(method, url, json=body) as response,
        ):
            if not response.is_success:
                raise TemporaryError(f"the Results Service answered {response.status_code}")
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > _LONGEST_ANSWER:
                    raise TemporaryError("the Results Service's answer is too long")
            return bytes(content)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()


def results_service(settings: Settings) -> ResultsService:
    """Return the Results Service that the settings name."""
    remote = settings.services.results_service
    if remote.endpoint is None:
        return LedgerResultsService()
    return RestResultsService(remote.endpoint, settings.dicom.scu.ae_title, remote.request_seconds)


# -- polls ---------------------------------------------------------------------------------------


def poll(adapter: Adapter, service: ResultsService | None = None) -> int:
    """Take in what waits for us at the Results Service; done twice it is done once.

    Tasks that are known already, say because their destination is on hold, do not hide those behind
    them: a page without news is asked for again, twice as long.

    Returns
    -------
    int
        How many tasks bring work to do.

    Raises
    ------
    TemporaryError
        If the Results Service cannot be asked.
    """
    service = service or results_service(adapter.settings)
    size, amount = PAGE, 0
    while True:
        answer = service.pending(size)
        amount = _take_in(adapter, answer)
        if amount or len(answer) < size or size >= LONGEST_PAGE:
            return amount
        size *= 2


def _take_in(adapter: Adapter, answer: list[Any]) -> int:
    settings = adapter.settings
    known = {
        found.entity.name.casefold()
        for found in configuration.current(adapter.ledger, EntityKind.DESTINATION)
    }
    policy = settings.dicom.scu.export
    deliveries = [read_task(raw, known, policy.failure_threshold) for raw in answer]
    if None in deliveries:
        _complain("tasks without a valid id are ignored", amount=deliveries.count(None))
    return remote_tasks.deliver(
        adapter.ledger,
        [delivery for delivery in deliveries if delivery is not None],
        agent=settings.dicom.scu.ae_title,
        service=settings.services.results_service,
        policy=policy,
    )


class Poller:
    """A background loop that polls a remote Results Service; without one it does nothing.

    Parameters
    ----------
    adapter : Adapter
        Whose Results Service it is.
    queues : StageQueues
        Wakes the export stage.
    """

    def __init__(self, adapter: Adapter, queues: StageQueues) -> None:
        self._adapter = adapter
        self._queues = queues
        export = adapter.settings.dicom.scu.export
        usual = export.poll_frequency_ms / 1000
        self._service = results_service(adapter.settings)
        self._loop = BackgroundLoop(
            "results-service-poll",
            self._poll,
            period=usual,
            longest_delay=max(usual, export.hold_minimum_seconds),
        )

    def start(self) -> None:
        """Start polling, if there is a remote Results Service."""
        if self._adapter.settings.services.results_service.endpoint is not None:
            self._loop.start()

    def stop(self) -> None:
        """Stop polling; a request on its way is left behind."""
        self._loop.stop(1)

    def _poll(self) -> None:
        if poll(self._adapter, self._service):
            self._queues.wake(stages.EXPORT)


_complaints: dict[str, float] = {}


def _complain(what: str, **facts: Any) -> None:
    """Log a warning, each kind at most once a minute."""
    now = time.monotonic()
    if now > _complaints.get(what, -60.0) + 60:
        _complaints[what] = now
        log.warning(what, **facts)
