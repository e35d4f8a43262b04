# SPDX-License-Identifier: Apache-2.0
"""Errors as problem documents (RFC 9457), without the text of any exception.

An exception's text may quote values of data elements, addresses or statements.  A problem document
says only what the caller may know and can do.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from adapter.api.opening import NotOpen
from adapter.errors import validation_problems
from adapter.ledger.queries import UnclearId
from adapter.log import get_logger

log = get_logger(__name__)

#: Seconds after which a caller should repeat its request when the ledger does not answer.
_RETRY_AFTER = "5"


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = "about:blank"
    title: str = Field(description="The HTTP status in words.")
    status: int
    detail: str | None = Field(None, description="Details of this occurrence.")
    errors: list[str] | None = Field(None, description="What is wrong with each parameter.")


class ProblemResponse(JSONResponse):
    """A response with a problem document."""

    media_type = "application/problem+json"


def respond(
    status: int,
    detail: str | None = None,
    *,
    errors: list[str] | None = None,
    headers: dict[str, str] | None = None,
) -> ProblemResponse:
    """Return the response for a problem."""
    problem = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail, errors=errors)
    return ProblemResponse(problem.model_dump(exclude_none=True), status, headers)


def documented(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of the problems that a route may answer with."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        int(status): {
            "description": status.phrase,
            "model": Problem,
            "content": {ProblemResponse.media_type: {"schema": schema}},
        }
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Make an application answer every failure with a problem document."""
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(UnclearId, _unclear)
    app.add_exception_handler(NotOpen, _not_open)
    app.add_exception_handler(SQLAlchemyError, _ledger_away)
    app.add_exception_handler(Exception, _unexpected)


def _refused(_request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, HTTPException)
    detail = error.detail if error.detail != HTTPStatus(error.status_code).phrase else None
    return respond(error.status_code, detail, headers=dict(error.headers or {}))


def _invalid(_request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, RequestValidationError)
    return _wrong(validation_problems(error.errors()))


def _unclear(_request: Request, error: Exception) -> ProblemResponse:
    return _wrong([str(error)])


def _wrong(errors: list[str]) -> ProblemResponse:
    return respond(HTTPStatus.UNPROCESSABLE_ENTITY, "a parameter is not valid", errors=errors)


def _not_open(_request: Request, error: Exception) -> ProblemResponse:
    return respond(
        HTTPStatus.SERVICE_UNAVAILABLE, str(error), headers={"Retry-After": _RETRY_AFTER}
    )


def _ledger_away(_request: Request, error: Exception) -> ProblemResponse:
    log.warning("the ledger does not answer", error=type(error).__name__)
    return respond(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the ledger does not answer",
        headers={"Retry-After": _RETRY_AFTER},
    )


def _unexpected(_request: Request, error: Exception) -> ProblemResponse:
    log.error("a request failed", error=type(error).__name__)
    return respond(HTTPStatus.INTERNAL_SERVER_ERROR)
