# SPDX-License-Identifier: Apache-2.0
"""What pipelines printed: kept in a job's folder of work/ when everything else of it is deleted.

Nothing depends on it, and no row tells of it: a folder that holds nothing else belongs to a job
whose files are reclaimed.  It goes when it is old, or when there is too much of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from adapter.files import delete_tree

STDOUT, STDERR = "stdout.txt", "stderr.txt"
_NAMES = {STDOUT, STDERR}


def is_all_that_is_left(folder: Path) -> bool:
    """Tell whether a job's folder holds what its pipeline printed and nothing else."""
    try:
        names = set(os.listdir(folder))  # noqa: PTH208 - a set of names, not of paths
    except (FileNotFoundError, NotADirectoryError):
        return False
    return bool(names) and names <= _NAMES


def delete_all_else(folder: Path) -> None:
    """Delete everything else in a job's folder, and the folder if nothing was printed.

    Raises
    ------
    OSError
        If something of it cannot be deleted.
    """
    with suppress(FileNotFoundError):
        for path in list(folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                delete_tree(path)
                if path.exists():
                    path.rmdir()  # to learn why
            elif path.name not in _NAMES or path.lstat().st_size == 0:
                path.unlink()
        if not any(folder.iterdir()):
            folder.rmdir()


def delete_old(work: Path, before: float, most: int) -> int:
    """Delete what is left of jobs: what is older than a time, and the oldest beyond some bytes.

    Returns
    -------
    int
        The number of jobs whose output was deleted.
    """
    room, count = most, 0
    for written, size, folder in sorted(_left(work), reverse=True):
        room -= size
        if written < before or room < 0:
            delete_tree(folder)
            count += 1
    return count


def _left(work: Path) -> Iterator[tuple[float, int, Path]]:
    """Yield when the output of each job was last written, how many bytes it has, and its folder."""
    for folder in work.iterdir():
        if is_all_that_is_left(folder):
            with suppress(FileNotFoundError):
                found = [path.lstat() for path in folder.iterdir()]
                yield max(f.st_mtime for f in found), sum(f.st_size for f in found), folder
