# SPDX-License-Identifier: Apache-2.0
"""Who may read the adapter's files: the user that it runs as, and no other.

The ledger, the spool and the passwords lie in the data folder.  Every process makes its files and
folders for its user only, and the data folder is closed for everybody else, also if it was there
before.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from adapter.errors import ConfigurationError

#: What a process that runs as root is told once.
AS_ROOT = (
    "this runs as root, which it never needs: whoever breaks into it owns the machine; run it as a "
    "user of its own"
)


def keep_files_private() -> None:
    """Make what this process and its children create accessible to their user only (umask(2))."""
    os.umask(0o077)


def make_private_folder(path: Path) -> None:
    """Make a folder for this user only, or close it for the others if it is there already.

    Raises
    ------
    ConfigurationError
        If others may use it, and this user may not change that; the text has the command that does.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _bits(path) & (stat.S_IRWXG | stat.S_IRWXO):
        with suppress(OSError):  # not ours: then the group may be how we get in
            path.chmod(_bits(path) & ~(stat.S_IRWXG | stat.S_IRWXO))
    if _bits(path) & stat.S_IRWXO:
        problem = (
            f"DicomAdapter > data: every user of this machine may use {path}; close it with "
            f"`sudo chown -R {os.geteuid()} {path} && sudo chmod go= {path}`, or choose a folder "
            "below it"
        )
        raise ConfigurationError([problem])


def is_root() -> bool:
    """Return whether this process runs as root."""
    return os.geteuid() == 0


def _bits(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)
