# SPDX-License-Identifier: Apache-2.0
"""HEAD: every GET without its body (RFC 9110 section 9.3.2)."""

from __future__ import annotations

from starlette import types


class HeadAsGet:
    """Answers HEAD as the application answers GET, with the same status and headers and no body.

    Parameters
    ----------
    app : ASGI application
        It knows GET only.
    """

    def __init__(self, app: types.ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        """Serve one connection of the ASGI server."""

        async def send_head(message: types.Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        if scope["type"] == "http" and scope["method"] == "HEAD":
            await self._app({**scope, "method": "GET"}, receive, send_head)
        else:
            await self._app(scope, receive, send)
