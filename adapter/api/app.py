# SPDX-License-Identifier: Apache-2.0
"""The routes of the REST API.  They only read; OpenAPI describes them at /openapi.json."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import CollectorRegistry
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from adapter import background
from adapter.api import health, problems
from adapter.api.fresh import NotAvailable
from adapter.api.head import HeadAsGet
from adapter.api.health import HealthCheck
from adapter.api.hosts import OwnHostOnly
from adapter.api.metrics import ApiCollector, ApiMetrics, Scaling
from adapter.api.opening import ROLE, AdapterOpening
from adapter.ledger import Ledger, queries
from adapter.ledger.queries import LARGEST_PAGE, Page
from adapter.ledger.queries.facts import ExportDetail, ExportFacts, JobFacts, Study, Timeline
from adapter.metrics import RoleCollector, unrecovered
from adapter.models import ExportState, JobState
from adapter.stages import STAGES

F = TypeVar("F")


def create_app(opening: AdapterOpening) -> FastAPI:
    """Return the ASGI application of one adapter."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        opening.start()
        yield
        await run_in_threadpool(opening.stop)

    app = FastAPI(
        title="dicom-adapter",
        description="A durable gateway between DICOM imaging and AI pipelines.",
        lifespan=lifespan,
        # Their pages load scripts from the Internet, which a hospital's network blocks.
        docs_url=None,
        redoc_url=None,
    )
    metrics = ApiMetrics(opening)
    app.state.opening = opening
    app.state.metrics = metrics
    app.state.health = HealthCheck(opening)
    app.state.registry = CollectorRegistry()
    app.state.registry.register(RoleCollector(ROLE, lambda: opening.heart.age))
    app.state.registry.register(ApiCollector(metrics))
    problems.install(app)
    app.add_middleware(HeadAsGet)
    app.add_middleware(OwnHostOnly, names=opening.settings.api.host_names)
    app.include_router(_health)
    app.include_router(_machines)
    app.include_router(_api)
    return app


def _opening(request: Request) -> AdapterOpening:
    opening: AdapterOpening = request.app.state.opening
    return opening


def _ledger(request: Request) -> Ledger:
    return _opening(request).adapter.ledger


def _metrics(request: Request) -> ApiMetrics:
    metrics: ApiMetrics = request.app.state.metrics
    return metrics


def _health_check(request: Request) -> HealthCheck:
    check: HealthCheck = request.app.state.health
    return check


HealthOf = Annotated[HealthCheck, Depends(_health_check)]
LedgerOf = Annotated[Ledger, Depends(_ledger)]
MetricsOf = Annotated[ApiMetrics, Depends(_metrics)]
Limit = Annotated[int, Query(ge=1, le=LARGEST_PAGE, description="Rows on a page.")]
After = Annotated[str | None, Query(max_length=128, description="The `next` of the page before.")]

# -- health --------------------------------------------------------------------------------

_health = APIRouter(prefix="/health", tags=["health"])


@_health.get("/live", responses=problems.documented(HTTPStatus.SERVICE_UNAVAILABLE))
async def live() -> dict[str, str]:
    """Tell whether this process serves; 503 if it has to be replaced."""
    if reasons := unrecovered(background.lost()):
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "; ".join(reasons))
    return {"status": "live"}


@_health.get("/ready", responses=problems.documented(HTTPStatus.SERVICE_UNAVAILABLE))
def ready(check: HealthOf) -> dict[str, str]:
    """Return whether ledger and spool are there, belong together and have this release's schema."""
    if reasons := check.unready():
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "; ".join(reasons))
    return {"status": "ready"}


@_health.get("/status", responses={503: {"model": health.Health, "description": "Red."}})
def status(check: HealthOf, response: Response) -> health.Health:
    """Return the health of the adapter: green, yellow or red (then with 503), and why."""
    found = check.examine()
    if found.status == "red":
        response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
    return found


# -- for machines --------------------------------------------------------------------------

_machines = APIRouter(tags=["metrics"])


@_machines.get("/metrics", response_class=PlainTextResponse)
def show_metrics(request: Request) -> Response:
    """Return the metrics of ledger, spool and broker in Prometheus' text format."""
    text = generate_latest(request.app.state.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


@_machines.get(
    "/scaling/{stage}",
    responses=problems.documented(HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE),
)
def show_scaling(metrics: MetricsOf, stage: str) -> Scaling:
    """Return how much due work a stage has, and for how long the oldest has been due."""
    if stage not in STAGES:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"the stages are {', '.join(STAGES)}")
    try:
        return metrics.scaling(stage)
    except NotAvailable:
        raise HTTPException(
            HTTPStatus.SERVICE_UNAVAILABLE, "the ledger or the spool does not answer"
        ) from None


# -- what happened -------------------------------------------------------------------------

_api = APIRouter(
    prefix="/api",
    responses=problems.documented(HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.SERVICE_UNAVAILABLE),
)
_missing = problems.documented(HTTPStatus.NOT_FOUND)


@_api.get("/studies", tags=["studies"])
def list_studies(ledger: LedgerOf, limit: Limit = 100, after: After = None) -> Page[Study]:
    """List the studies; the study of the newest instance comes first."""
    return queries.list_studies(ledger, limit=limit, after=after)


@_api.get("/studies/{study_instance_uid}", tags=["studies"], responses=_missing)
def show_study(ledger: LedgerOf, study_instance_uid: str) -> Timeline:
    """Return the timeline of a study, from its associations to its exports."""
    return _found(queries.find_timeline(ledger, study_instance_uid), "study")


@_api.get("/jobs", tags=["jobs"])
def list_jobs(
    ledger: LedgerOf, state: JobState | None = None, limit: Limit = 100, after: After = None
) -> Page[JobFacts]:
    """List the jobs, newest first."""
    return queries.list_jobs(ledger, state=state, limit=limit, after=after)


@_api.get("/jobs/{job_id}", tags=["jobs"], responses=_missing)
def show_job(ledger: LedgerOf, job_id: str) -> JobFacts:
    """Show a job."""
    return _found(queries.find_job(ledger, job_id), "job")


@_api.get("/exports", tags=["exports"])
def list_exports(
    ledger: LedgerOf,
    state: ExportState | None = None,
    destination: Annotated[str | None, Query(max_length=64)] = None,
    limit: Limit = 100,
    after: After = None,
) -> Page[ExportFacts]:
    """List the exports, newest first."""
    return queries.list_exports(
        ledger, state=state, destination=destination, limit=limit, after=after
    )


@_api.get("/exports/{export_id}", tags=["exports"], responses=_missing)
def show_export(ledger: LedgerOf, export_id: str) -> ExportDetail:
    """Show an export, and which of its files the destination has not confirmed."""
    return _found(queries.find_export(ledger, export_id), "export")


def _found(facts: F | None, kind: str) -> F:
    if facts is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"there is no such {kind}")
    return facts
