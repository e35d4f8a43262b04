# SPDX-License-Identifier: Apache-2.0
"""Flower, as an operator sees it after the demo: what ran, what failed and why, and how long."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pydicom.data
import pytest

from adapter import settings as settings_module
from adapter.core import Adapter, open_adapter
from adapter.demo import command, scene
from adapter.embedded.roles import flower_password_file, own_command
from adapter.embedded.supervisor import Supervisor
from adapter.ledger.schema import exports, jobs
from adapter.models import JobState
from adapter.stages import STAGES
from tests.support_browser import open_page
from tests.support_stages import add_ae_title, rows
from tests.support_waiting import eventually
from workers.stage import Parked, TryFailed

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.timeout(300)]

#: Where the docs show it; written anew if SCREENSHOTS is set (make screenshots).
SCREENSHOT = Path(__file__).parents[1] / "docs/images/flower-tasks.png"
#: A small real CT slice, which pydicom's wheel carries.
SLICE = Path(pydicom.data.__file__).parent / "test_files/CT_small.dcm"
#: A pipeline whose command fails: tried once more, then parked.
BROKEN = {"name": "Broken", "command": ["false"], "export": False, "maximumRetries": 1}
START_SECONDS = 60.0


class Flower:
    """Flower's pages and its API, with the password of the adapter."""

    def __init__(self, adapter: Adapter) -> None:
        flower = adapter.settings.flower
        self.url = f"http://127.0.0.1:{flower.port}"
        self.login = (flower.user, flower_password_file(adapter.settings).read_text().strip())

    def tasks(self, name: str) -> list[dict[str, Any]]:
        """Return the tasks of a stage that Flower has seen."""
        answer = httpx.get(f"{self.url}/api/tasks?taskname={name}", auth=self.login, timeout=10)
        return list(answer.json().values())


def parked(adapter: Adapter) -> list[Any]:
    """Return the jobs that are parked."""
    return rows(adapter, jobs, jobs.c.state == JobState.PARKED)


@pytest.fixture(scope="module")
def after_the_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Adapter, Flower]]:
    """Everything on one machine, after the demo, with one more job whose pipeline is broken."""
    stage = scene.build(tmp_path_factory.mktemp("demo"))
    file = stage.settings.data / "appsettings.json"
    document = json.loads(file.read_text())
    document["DicomAdapter"]["pipelines"]["broken"] = BROKEN
    file.write_text(json.dumps(document))
    settings = settings_module.load(data=stage.settings.data)
    with Supervisor(settings, extra=[stage.pacs_role], print_line=lambda _line: None) as supervisor:
        assert supervisor.wait_ready(START_SECONDS), supervisor.missing()
        adapter = open_adapter(settings, create=True)
        try:
            command.visit(stage, None, stall_seconds=START_SECONDS)
            broken = {"timeout": "5", "jobRetryDelay": "0", "pipeline-broken": "broken"}
            version = add_ae_title(adapter, "SECOND", processor_settings=broken)
            eventually(lambda: scene.in_force(adapter, version))
            port, calling = str(stage.adapter.port), scene.MODALITY
            options = ("--host", "127.0.0.1", "--port", port, "--calling", calling)
            subprocess.run([*own_command("send", "SECOND", str(SLICE)), *options], check=True)
            eventually(lambda: parked(adapter), START_SECONDS)
            yield adapter, Flower(adapter)
        finally:
            adapter.close()


def test_an_operator_finds_every_job_in_flower(after_the_demo: tuple[Adapter, Flower]) -> None:
    """A task names the job, export or group that it is about, and its result what came of it."""
    adapter, flower = after_the_demo

    results = eventually(lambda: finished(flower))

    [succeeded] = rows(adapter, jobs, jobs.c.state == JobState.SUCCEEDED)
    [export] = rows(adapter, exports)
    for stage, key, row in (
        ("submission", "job", succeeded.id),
        ("pipeline", "job", succeeded.id),
        ("export", "export", export.id),
    ):
        [mine] = [result for result in results[stage] if result.get(key) == row]
        assert mine["outcome"] in {"started", "succeeded"}
        assert 0 <= mine["seconds"] < 60
    groups = {result["group"] for result in results["grouping"] if result["outcome"] == "closed"}
    assert groups == {row.group_id for row in rows(adapter, jobs)}
    assert {"registered": 7} in results["notification"]


def test_a_failed_try_is_a_retry_and_a_parked_job_a_failure(
    after_the_demo: tuple[Adapter, Flower],
) -> None:
    """Whoever has only Flower sees which job failed, how often, and why."""
    adapter, flower = after_the_demo
    [job] = parked(adapter)

    def ended() -> list[dict[str, Any]]:
        mine = [task for task in flower.tasks("pipeline") if job.id in task["kwargs"]]
        return mine if {task["state"] for task in mine} >= {"RETRY", "FAILURE"} else []

    mine = eventually(ended)
    whys = {task["state"]: task["exception"] for task in mine}
    assert f"{TryFailed.__name__}(" in whys["RETRY"]
    assert whys["FAILURE"].startswith(Parked.__name__)
    assert all("exit-code: exit code 1" in whys[state] for state in ("RETRY", "FAILURE"))


def test_flower_shows_it_in_a_browser(after_the_demo: tuple[Adapter, Flower]) -> None:
    """The page of tasks shows the jobs by their ids; the picture of it is the one of the docs."""
    adapter, flower = after_the_demo
    [job] = parked(adapter)
    user, password = flower.login
    login = {"username": user, "password": password}

    eventually(lambda: [task for task in flower.tasks("pipeline") if task["state"] == "FAILURE"])
    with open_page(http_credentials=login, viewport={"width": 2300, "height": 800}) as page:
        page.goto(f"{flower.url}/tasks?limit=100")
        page.get_by_text(job.id).first.wait_for()
        shown = page.locator("#tasks-table").inner_text()
        picture = page.screenshot(path=SCREENSHOT if "SCREENSHOTS" in os.environ else None)

    assert "FAILURE" in shown
    assert "RETRY" in shown
    assert "exit-code" in shown
    assert len(picture) > 10_000
    assert SCREENSHOT.exists()


def finished(flower: Flower) -> dict[str, list[dict[str, Any]]] | None:
    """Return the results of the tasks by stage, once Flower has those of the whole demo."""
    results = {
        stage: [
            ast.literal_eval(task["result"])
            for task in flower.tasks(stage)
            if task["state"] == "SUCCESS"
        ]
        for stage in STAGES
    }
    return results if all(results[stage] for stage in STAGES if stage != "reclamation") else None
