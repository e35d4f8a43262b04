# SPDX-License-Identifier: Apache-2.0
"""The data folder is for the user that the adapter runs as."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from adapter import rights
from adapter.core import open_adapter
from adapter.errors import ConfigurationError
from adapter.settings import Settings


def test_a_folder_that_was_there_before_is_closed_for_others(settings: Settings) -> None:
    """Whoever made it, and with whatever rights, no other user gets in."""
    settings.data.mkdir(mode=0o755)

    open_adapter(settings, create=True).close()

    assert stat.S_IMODE(settings.data.stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_closed_is_refused_with_the_command_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is put where every user may read it; one that others of a group use is for that."""
    tmp_path.chmod(0o1777)

    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "chmod", refuse)
    with pytest.raises(ConfigurationError, match=f"data: every user.*chmod go= {tmp_path}"):
        rights.make_private_folder(tmp_path)

    os.chmod(tmp_path, 0o2770)  # noqa: PTH101 - Path's is taken
    rights.make_private_folder(tmp_path)
