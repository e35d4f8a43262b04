# SPDX-License-Identifier: Apache-2.0
"""Folders that a pipeline has filled are deleted, whatever it did to them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapter.files import delete_tree

NOBODY = 65534


@contextmanager
def as_nobody(*folders: Path) -> Iterator[None]:
    """Do without root's right to write everywhere, where we are root."""
    if os.geteuid() != 0:
        yield
        return
    for folder in folders:
        os.chown(folder, NOBODY, NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_folders_nested_deeper_than_python_follows_are_deleted(tmp_path: Path) -> None:
    """The work folder of a pipeline that nests without end goes too, and breaks no reclamation."""
    folder = tmp_path / "work"
    folder.mkdir()
    nest = "for _ in $(seq 1500); do mkdir a && cd a || exit 1; done; touch file"
    subprocess.run(["sh", "-c", nest], cwd=folder, check=True)

    delete_tree(folder)

    assert not folder.exists()


def test_read_only_folders_are_deleted() -> None:
    """A cache that a pipeline left read-only, as some tools do, does not stay for ever."""
    folder = Path(tempfile.mkdtemp(prefix="delete-tree-"))
    try:
        inner = folder / "cache" / "module"
        inner.mkdir(parents=True)
        (inner / "file").write_text("x")
        for path in (inner, inner.parent):
            path.chmod(0o500)

        with as_nobody(folder.parent / folder.name, inner.parent, inner, inner / "file"):
            delete_tree(folder / "cache")

        assert not (folder / "cache").exists()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_what_is_gone_is_gone(tmp_path: Path) -> None:
    """Deleting twice is as good as once."""
    delete_tree(tmp_path / "nothing")
