# SPDX-License-Identifier: Apache-2.0
"""What every test may ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapter import settings as settings_module
from adapter.core import Adapter, open_adapter
from adapter.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of an adapter of its own, quick to notice things; its disk is never full."""
    loaded = settings_module.load(data=tmp_path / "data")
    return loaded.model_copy(
        update={
            "storage": loaded.storage.model_copy(
                update={"watermark_percent": 100.0, "reserve_space_gb": 0.0}
            ),
            "workers": loaded.workers.model_copy(
                update={"tick_seconds": 0.2, "lease_seconds": 3.0}
            ),
        }
    )


@pytest.fixture
def adapter(settings: Settings) -> Iterator[Adapter]:
    """An adapter on an empty folder."""
    opened = open_adapter(settings)
    yield opened
    opened.close()
