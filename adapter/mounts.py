# SPDX-License-Identifier: Apache-2.0
"""Mounts: the kernel's view of the volume that a folder is on, and how late it shows new files.

The client of a network file system caches directories: a name that another host has created
becomes visible only when the cache expires.  The mount options say how long that takes, so no
setting is needed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

#: Shared file systems whose clients cache directories, and the default maximum age of that cache
#: (seconds): nfs(5) acdirmax, mount.cifs(8) acdirmax.
CACHING = {"nfs": 60.0, "nfs4": 60.0, "cifs": 1.0, "smb3": 1.0}

_MOUNTINFO = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted file system.

    Attributes
    ----------
    point : Path
        Where it is mounted.
    kind : str
        The file system's type, e.g. ``nfs4``.
    source : str
        What is mounted, e.g. ``server:/export``.
    options : mapping of str to str
        Options of the mount and of the file system; those without a value have an empty one.
    """

    point: Path
    kind: str
    source: str
    options: Mapping[str, str]

    @property
    def lag_seconds(self) -> float:
        """The delay in seconds after which a name created on another host is visible here."""
        if self.kind not in CACHING or "noac" in self.options:
            return 0.0
        try:
            return float(self.options["acdirmax"])
        except (KeyError, ValueError):
            return CACHING[self.kind]


def mount_of(folder: Path, mountinfo: Path = _MOUNTINFO) -> Mount:
    """Return the mount that a folder is on.

    Parameters
    ----------
    folder : Path
        It need not exist yet.
    mountinfo : Path, optional
        The kernel's list (proc_pid_mountinfo(5)).
    """
    resolved = folder.resolve()
    found = Mount(Path("/"), "unknown", "", {})
    for line in mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        first, _, last = line.partition(" - ")
        point = Path(_plain(first.split()[4]))
        # Of several mounts on one point, the last one is visible.
        if resolved.is_relative_to(point) and len(point.parts) >= len(found.point.parts):
            kind, source, *more = last.split(" ")
            options = ",".join([first.split()[5], *more])
            found = Mount(point, kind, _plain(source), _pairs(options))
    return found


def _pairs(options: str) -> dict[str, str]:
    pairs = (option.partition("=") for option in options.split(",") if option)
    return {name: value for name, _, value in pairs}


def _plain(text: str) -> str:
    r"""Return a field without its escapes: a space is written \040."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
