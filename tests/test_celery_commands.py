# SPDX-License-Identifier: Apache-2.0
"""`celery -A workers ...`: Celery's own commands, as its users know them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapter.stages import STAGES
from tests.support_stack import Stack
from tests.support_waiting import eventually


def celery(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of Celery's for the adapter that the variables name."""
    kept = {key: os.environ[key] for key in os.environ if not key.startswith("DICOMADAPTER")}
    return subprocess.run(
        [sys.executable, "-m", "celery", "-A", "workers", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**kept, **variables},
    )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An adapter with a worker for export."""
    made = Stack(tmp_path_factory.mktemp("celery") / "data", {})
    try:
        yield made.start("redis", "worker:export")
    finally:
        made.close()


def test_inspect_shows_stages_by_name(stack: Stack) -> None:
    """DICOMADAPTER_DATA is enough for `celery inspect`: a worker, its queue, and named tasks."""
    name = f"{stack.settings.data.name}-worker-export@{socket.gethostname()}"

    def ask(what: str) -> Any:
        # Asked by its name it is waited for, and no longer than it takes.  A question that comes
        # before the worker listens for any is lost.
        asked = ("inspect", what, "--json", "--timeout", "5", "--destination", name)
        ran = celery(*asked, **stack.settings.environment)
        return json.loads(ran.stdout)[name] if ran.returncode == 0 else None

    assert eventually(lambda: ask("ping"), 60) == {"ok": "pong"}
    assert [queue["name"] for queue in eventually(lambda: ask("active_queues"), 60)] == ["export"]
    assert eventually(lambda: ask("registered"), 60) == sorted(STAGES)


def test_a_wake_up_may_carry_any_arguments(stack: Stack) -> None:
    """Who sends one by hand, as by Flower's form or in a program, only wakes the stage."""
    code = "from workers.celery import app; app.tasks['export'].apply_async([1], {'colour': 'red'})"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **stack.settings.environment},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    "command", [("report",), ("inspect", "ping"), ("worker", "-Q", "export"), ("flower",)]
)
def test_a_mistyped_folder_is_told_and_not_made(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Where there is no adapter, each command says so in words, at once, and leaves nothing."""
    ran = celery(*command, DICOMADAPTER_DATA=str(tmp_path / "mistyped"))

    assert ran.returncode == 1
    assert f"there is no adapter in {tmp_path / 'mistyped'}" in ran.stderr
    assert "DICOMADAPTER_DATA" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "mistyped").exists()


def test_bad_settings_are_told_in_words(tmp_path: Path) -> None:
    """Every problem of the settings is a line, and there is no stack."""
    config = tmp_path / "appsettings.json"
    config.write_text('{"DicomAdapter": {"timeout-group": 5, "api": {"port": 0}}}')

    ran = celery("report", DICOMADAPTER_CONFIG=str(config))

    assert ran.returncode == 1
    assert "timeout-group: removed; use the AE title's processor setting" in ran.stderr
    assert "api > port" in ran.stderr
    assert "Traceback" not in ran.stderr
