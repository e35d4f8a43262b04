# SPDX-License-Identifier: Apache-2.0
"""A PACS, and an adapter whose roles a test starts, stops and kills."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support_stack import Pacs, Stack

#: Notes each of its runs, then copies its input.
PIPELINE = {
    "name": "Slow copy",
    "command": ["sh", "-c", 'date >> "{runs}"; sleep 1; cp {input}/* {output}'],
    "isolation": "none",
    "destinations": ["PACS"],
}


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Pacs]:
    """A PACS that keeps what it is sent."""
    made = Pacs(tmp_path / "pacs")
    yield made
    made.close()


@pytest.fixture
def stack(tmp_path: Path, pacs: Pacs) -> Iterator[Stack]:
    """An adapter whose roles the test starts; one AE title, BRAIN, with one pipeline."""
    command = [part.replace("{runs}", str(tmp_path / "runs")) for part in PIPELINE["command"]]
    made = Stack(
        tmp_path / "data",
        {"slow": {**PIPELINE, "command": command}},
        storage={"retentionSeconds": 0},
    )
    made.add_destination("PACS", pacs.port)
    try:
        yield made
    finally:
        made.close()
