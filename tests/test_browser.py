# SPDX-License-Identifier: Apache-2.0
"""The browser that other tests look through: it renders what is served, and stays on loopback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Error

from tests.support_browser import open_page

PAGE = b"""<!DOCTYPE html><title>Jobs</title><p id="state">none</p>
<script>document.getElementById("state").textContent = ["suc", "ceeded"].join("")</script>"""


class Handler(BaseHTTPRequestHandler):
    """Serves one page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    """The address of a page on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.mark.needs("chromium")
def test_a_page_is_rendered(url: str, tmp_path: Path) -> None:
    """A page of loopback is fetched, its script run and its picture taken; nothing else is."""
    with open_page(viewport={"width": 640, "height": 480}) as page:
        page.goto(url)
        assert page.title() == "Jobs"
        assert page.text_content("#state") == "succeeded"
        picture = page.screenshot(path=tmp_path / "page.png")
        with pytest.raises(Error, match="ERR_NAME_NOT_RESOLVED"):
            page.goto(url.replace("127.0.0.1", "127.0.0.2"))

    assert picture.startswith(b"\x89PNG")
