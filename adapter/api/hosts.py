# SPDX-License-Identifier: Apache-2.0
"""Requests for another host than this one are refused, before anything looks at them."""

from __future__ import annotations

from collections.abc import Collection
from http import HTTPStatus

from starlette import types
from starlette.datastructures import Headers

from adapter.addresses import names_us
from adapter.api.problems import respond


class OwnHostOnly:
    """Answers 421 unless the Host of a request names this machine (RFC 9110 section 15.5.20).

    Parameters
    ----------
    app : ASGI application
        Gets the other requests.
    names : collection of str
        The names that the settings know.
    """

    def __init__(self, app: types.ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        """Serve one connection of the ASGI server."""
        answer = self._app
        if scope["type"] == "http" and not names_us(Headers(scope=scope).get("host"), self._names):
            detail = "the request is for another host; see api > hostNames"
            answer = respond(HTTPStatus.MISDIRECTED_REQUEST, detail)
        await answer(scope, receive, send)
