# SPDX-License-Identifier: Apache-2.0
"""A volume that shows new names late to other hosts, as a network file system's cache may.

It intercepts Python's calls of the operating system: it records every name that is created below
the volume's folder, with its host and time.  On another host the name is invisible until the delay
is over: it cannot be opened, listed, examined, linked from or deleted.  Creating the same name
again fails, because the server decides that.

In child processes: give them `environment`.  Within one: `install`, and set `host` of what it
returns to that on which the code runs that is called next.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import os
import time
from contextlib import suppress
from pathlib import Path

VARIABLES = ("LATE_FOLDER", "LATE_JOURNAL", "LATE_DELAY", "LATE_HOST")

_LOOKING = ("stat", "lstat")
_MAKING = ("mkdir",)
_MOVING = ("rename", "replace")
_GOING = ("unlink", "remove", "rmdir")
_OTHERS = ("open", "scandir", "listdir", "link")

_real = {name: getattr(os, name) for name in (*_LOOKING, *_MAKING, *_MOVING, *_GOING, *_OTHERS)}
_real_open = io.open


class LateVolume:
    """What one host sees of the volume.

    Parameters
    ----------
    folder : str
        The volume.
    journal : str
        Where the names are noted, outside of the volume and the same for all hosts.
    delay : float, seconds
        How late names of other hosts are seen.
    host : str
        On which host this is.
    """

    def __init__(self, folder, journal, delay, host):
        self.folder = os.path.realpath(folder)
        self.journal = str(journal)
        self.delay = float(delay)
        self.host = host
        os.makedirs(journal, exist_ok=True)

    # -- names -------------------------------------------------------------------------------

    def name(self, path, dir_fd=None):
        """Return a path as a name on the volume; None if it is elsewhere."""
        text = f"/proc/self/fd/{path}" if isinstance(path, int) else os.fsdecode(path)
        if isinstance(path, int):
            text = os.readlink(text)
        elif not text.startswith("/"):
            base = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
            text = f"{base}/{text}"
        if text.startswith("/proc/self/fd/"):  # a path through a descriptor, as the spool's
            number, _, rest = text.removeprefix("/proc/self/fd/").partition("/")
            text = f"{os.readlink(f'/proc/self/fd/{number}')}/{rest}"
        text = os.path.normpath(text)
        return text if text.startswith(f"{self.folder}/") else None

    def _entry(self, name):
        return f"{self.journal}/{hashlib.sha1(name.encode()).hexdigest()}"

    def hides(self, name):
        """Return whether a name, or a folder on the way to it, is not to be seen on this host."""
        while name is not None and name != self.folder:
            with suppress(FileNotFoundError), _real_open(self._entry(name)) as entry:
                host, _, made = entry.read().partition(" ")
                if made and host != self.host and time.time() < float(made) + self.delay:
                    return True
            name = os.path.dirname(name)
        return False

    def look(self, path, dir_fd=None):
        """Return a path's name on the volume, as long as it is to be seen."""
        name = self.name(path, dir_fd)
        if self.hides(name):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
        return name

    def make(self, path, dir_fd):
        """Record a new name before another process can see it."""
        name = self.name(path, dir_fd)
        if name is None:
            return
        if self.hides(os.path.dirname(name)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
        try:
            _real["lstat"](name)
        except FileNotFoundError:
            self.note(name)

    def note(self, name):
        """Note a name as made now on this host."""
        with _real_open(self._entry(name), "w") as entry:
            entry.write(f"{self.host} {time.time()}")

    def forget(self, name):
        """Take the note of a name away that is gone."""
        if name is not None:
            with suppress(FileNotFoundError):
                _real["unlink"](self._entry(name))

    # -- what takes the place of os -----------------------------------------------------------

    def open(self, path, flags, mode=0o777, *, dir_fd=None):
        (self.make if flags & os.O_CREAT else self.look)(path, dir_fd)
        return _real["open"](path, flags, mode, dir_fd=dir_fd)

    def io_open(self, file, mode="r", *args, **more):
        if not isinstance(file, int) and "opener" not in more:
            (self.make if set(mode) & set("wax") else self.look)(file, None)
        return _real_open(file, mode, *args, **more)

    def link(self, src, dst, *, src_dir_fd=None, dst_dir_fd=None, follow_symlinks=True):
        self.look(src, src_dir_fd)
        self.make(dst, dst_dir_fd)
        folders = {"src_dir_fd": src_dir_fd, "dst_dir_fd": dst_dir_fd}
        return _real["link"](src, dst, follow_symlinks=follow_symlinks, **folders)

    def scandir(self, path="."):
        self.look(path)
        return _Scan(self, path)

    def listdir(self, path="."):
        with self.scandir(path) as entries:
            return [entry.name for entry in entries]

    def looking(self, name):
        def call(path, *, dir_fd=None, **more):
            if not isinstance(path, int):
                self.look(path, dir_fd)
            return _real[name](path, dir_fd=dir_fd, **more)

        return call

    def making(self, name):
        def call(path, *more, dir_fd=None, **named):
            self.make(path, dir_fd)
            return _real[name](path, *more, dir_fd=dir_fd, **named)

        return call

    def moving(self, name):
        def call(src, dst, *, src_dir_fd=None, dst_dir_fd=None):
            left = self.look(src, src_dir_fd)
            self.make(dst, dst_dir_fd)
            _real[name](src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            self.forget(left)

        return call

    def going(self, name):
        def call(path, *, dir_fd=None):
            gone = self.look(path, dir_fd)
            _real[name](path, dir_fd=dir_fd)
            self.forget(gone)

        return call


class _Scan:
    """A listing that leaves out what is not to be seen."""

    def __init__(self, volume, path):
        self._volume = volume
        named = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else path
        self._folder = os.path.realpath(named)
        self._entries = _real["scandir"](path)

    def __iter__(self):
        for entry in self._entries:
            name = f"{self._folder}/{entry.name}"
            # A name that went while it was listed has no note any more; it was hidden until then.
            if not self._volume.hides(self._volume.name(name)) and _is_there(name):
                yield entry

    def __next__(self):
        return next(iter(self))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._entries.close()


def _is_there(name):
    try:
        _real["lstat"](name)
    except FileNotFoundError:
        return False
    return True


def install(folder, journal, delay, host) -> LateVolume:
    """Make a folder a volume that shows new names late, for this process."""
    volume = LateVolume(folder, journal, delay, host)
    for names, kind in (
        (_LOOKING, volume.looking),
        (_MAKING, volume.making),
        (_MOVING, volume.moving),
        (_GOING, volume.going),
    ):
        for name in names:
            setattr(os, name, kind(name))
    for name in _OTHERS:
        setattr(os, name, getattr(volume, name))
    io.open = builtins.open = volume.io_open
    return volume


def uninstall() -> None:
    """Give the process its own eyes back."""
    for name, function in _real.items():
        setattr(os, name, function)
    io.open = builtins.open = _real_open


def environment(folder: Path, aside: Path, delay: float, host: str) -> dict[str, str]:
    """Return what makes a process and its children see a volume late, as on some host.

    Parameters
    ----------
    folder : Path
        The volume.
    aside : Path
        A folder for the journal and the start-up module, the same for all hosts.
    delay : float, seconds
        How late names of other hosts are seen.
    host : str
        On which host the process runs.
    """
    aside.mkdir(exist_ok=True)
    start, new = aside / "sitecustomize.py", aside / "new"
    # In one step: a process that starts now would read half of it, and see everything at once.
    new.write_text(
        "import importlib.util, os\n"
        f"spec = importlib.util.spec_from_file_location('late_volume', {__file__!r})\n"
        "late_volume = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(late_volume)\n"
        "late_volume.install(*(os.environ[name] for name in late_volume.VARIABLES))\n"
    )
    new.replace(start)
    values = (str(folder), str(aside / "journal"), str(delay), host)
    return {**dict(zip(VARIABLES, values, strict=True)), "PYTHONPATH": str(aside)}
