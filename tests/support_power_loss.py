# SPDX-License-Identifier: Apache-2.0
"""A file system that knows what a power loss may leave, and can be told to leave out one step.

`RecordingFileSystem` takes the spool's steps on real files and keeps a `Disk` beside them: what a
reader sees, and what of that is certain.  The rules are those of POSIX, made no kinder by what one
file system happens to do:

- bytes that were not synced may be missing, short, or zeros;
- a name that was given or taken away is done or undone, each for itself, until its directory is
  synced; a rename is done or undone as a whole, and certain once its new directory is synced;
- what was synced stays.

What was not done through the seam (a pipeline's output, what `shutil` deletes) is noticed before
the next step and counts as not synced.

A `Fault` spoils one step of the code wherever it is taken: it is left out, comes too late, or is
done piece by piece instead of at once.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, combinations
from pathlib import Path
from typing import NamedTuple

from adapter.files import FileSystem, outside

#: Up to this many name changes that are not certain, every combination of them is tried.
_ALL_COMBINATIONS = 6

#: A tree of files: what each path holds, an inode's number and its bytes (None: a folder).
Tree = dict[str, tuple[int, bytes | None]]


class Change(NamedTuple):
    """Changes of names that happen together; certain once the directory `home` is synced."""

    home: int
    names: tuple[tuple[int, str, int | None], ...]


@dataclass(slots=True)
class Inode:
    """A file or folder: `data` and `names` as readers see it, `synced` and `kept` as is certain."""

    folder: bool
    data: bytes = b""
    synced: bytes = b""
    names: dict[str, int] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)


class Disk:
    """A disk with one folder as its root, which is always there."""

    def __init__(self) -> None:
        self.inodes = {0: Inode(folder=True)}
        self.pending: list[Change] = []

    def copy(self) -> Disk:
        copied = Disk()
        copied.inodes = {
            number: replace(inode, names=dict(inode.names), kept=dict(inode.kept))
            for number, inode in self.inodes.items()
        }
        copied.pending = list(self.pending)
        return copied

    @classmethod
    def holding(cls, folder: Path) -> Disk:
        """Return a disk that certainly holds what is in a real folder."""
        disk = cls()
        disk.notice(folder)
        for inode in disk.inodes.values():
            inode.synced, inode.kept = inode.data, dict(inode.names)
        disk.pending.clear()
        return disk

    def find(self, path: str) -> int | None:
        number: int | None = 0
        for name in Path(path).parts:
            number = None if number is None else self.inodes[number].names.get(name)
        return number

    def add(self, data: bytes = b"", *, folder: bool = False) -> int:
        number = len(self.inodes)
        self.inodes[number] = Inode(folder, data)
        return number

    def change(self, home: int, *names: tuple[int, str, int | None]) -> None:
        for folder, name, inode in names:
            _set(self.inodes[folder].names, name, inode)
        self.pending.append(Change(home, names))

    def sync_data(self, number: int) -> None:
        self.inodes[number].synced = self.inodes[number].data

    def sync_names(self, number: int) -> None:
        """Make a directory's changes certain, and void what they made obsolete in others."""
        left: list[Change] = []
        certain: set[tuple[int, str]] = set()
        for change in reversed(self.pending):
            if change.home == number:
                for folder, name, inode in change.names:
                    if (folder, name) not in certain:
                        _set(self.inodes[folder].kept, name, inode)
                        certain.add((folder, name))
            elif names := tuple(n for n in change.names if n[:2] not in certain):
                left.append(change._replace(names=names))
        self.pending = left[::-1]

    def notice(self, real: Path, number: int = 0) -> None:
        """Take over what others have made and deleted in the real folder."""
        inode = self.inodes[number]
        with os.scandir(real) as entries:
            found = {entry.name: entry for entry in entries}
        for name in [name for name in inode.names if name not in found]:
            self.change(number, (number, name, None))
        for name, entry in sorted(found.items()):
            folder = entry.is_dir(follow_symlinks=False)
            if name not in inode.names:
                data = b"" if folder else Path(entry.path).read_bytes()
                self.change(number, (number, name, self.add(data, folder=folder)))
            if folder:
                self.notice(Path(entry.path), inode.names[name])

    def seen(self) -> Tree:
        """Return what a reader sees."""
        return self._tree(lambda number: self.inodes[number].names)

    def leftovers(self, scratch: re.Pattern[str]) -> Iterator[Tree]:
        """Yield every tree that a power loss may leave at this moment.

        Of what is below a path that `scratch` matches nothing is left: it is nobody's any more.
        """
        done: set[int] = set()
        for chosen in _choices(self._lasting(scratch)):
            kept = {number: dict(inode.kept) for number, inode in self.inodes.items()}
            for change in chosen:
                for folder, name, inode in change.names:
                    _set(kept[folder], name, inode)
            tree = self._tree(kept.__getitem__)
            for variant in chain([tree], self._torn(tree)):
                found = hash(frozenset(variant.items()))
                if found not in done:
                    done.add(found)
                    yield variant

    def _lasting(self, scratch: re.Pattern[str]) -> list[Change]:
        """Return the changes that are not certain, but for those of names in scratch folders."""
        paths = {0: ""}
        for path, (number, data) in self.seen().items():
            if data is None:
                paths[number] = f"{path}/"
        return [
            change
            for change in self.pending
            if not all(scratch.match(paths.get(folder, "") + n) for folder, n, _ in change.names)
        ]

    def _tree(self, names_of: Callable[[int], dict[str, int]]) -> Tree:
        tree: Tree = {}
        left = [("", 0)]
        while left:
            path, number = left.pop()
            for name, child in names_of(number).items():
                inode = self.inodes[child]
                tree[path + name] = child, None if inode.folder else inode.data
                if inode.folder:
                    left.append((f"{path}{name}/", child))
        return tree

    def _torn(self, tree: Tree) -> Iterator[Tree]:
        """Yield the tree with the bytes of one file, or of all, not wholly there."""
        files = {number for number, data in tree.values() if data is not None}
        unsure = {n for n in files if self.inodes[n].data != self.inodes[n].synced}
        for numbers in chain(([n] for n in unsure), [unsure] if len(unsure) > 1 else []):
            for tear in (_missing, _short, _zeros):
                yield {
                    path: (n, tear(self.inodes[n]) if n in numbers else data)
                    for path, (n, data) in tree.items()
                }


def _set(names: dict[str, int], name: str, inode: int | None) -> None:
    if inode is None:
        names.pop(name, None)
    else:
        names[name] = inode


def _missing(inode: Inode) -> bytes:
    return inode.synced


def _short(inode: Inode) -> bytes:
    return inode.data[: (len(_certain_part(inode)) + len(inode.data)) // 2]


def _zeros(inode: Inode) -> bytes:
    certain = _certain_part(inode)
    return certain + bytes(len(inode.data) - len(certain))


def _certain_part(inode: Inode) -> bytes:
    """Return the bytes that were synced, unless they were overwritten since."""
    return inode.synced if inode.data.startswith(inode.synced) else b""


def _choices(pending: list[Change]) -> Iterator[list[Change]]:
    """Yield which changes were done, in their order: all combinations, or of directories."""
    if len(pending) <= _ALL_COMBINATIONS:
        for count in range(len(pending) + 1):
            yield from map(list, combinations(pending, count))
        return
    homes = sorted({change.home for change in pending})
    for count in range(len(homes) + 1):
        for chosen in combinations(homes, count):
            yield [change for change in pending if change.home in chosen]
    for number in range(1, _ALL_COMBINATIONS + 1):
        yield pending[:-number]
        yield [change for change in pending if change is not pending[-number]]


def write_tree(tree: Tree, root: Path) -> None:
    """Make a tree of real files; two paths of one inode are one file."""
    made: dict[int, Path] = {}
    for path, (number, data) in sorted(tree.items()):
        target = root / path
        if data is None:
            target.mkdir()
        elif number in made:
            os.link(made[number], target)
        else:
            target.write_bytes(data)
            made[number] = target


class Place(NamedTuple):
    """A step of the code: the function that takes it, what it is, and what it is done to."""

    function: str
    step: str
    path: str

    def __str__(self) -> str:
        return f"{self.function}: {self.step} {self.path}"


#: The steps that a promise rests on.
SYNCS = ("sync_data", "sync_file", "sync_directory")
NAMES = ("link", "link_nameless", "rename")


class Fault(NamedTuple):
    """How a step is spoiled: "left out", "too late", or "piece by piece" (names only)."""

    place: Place
    how: str


@dataclass(frozen=True, slots=True)
class Point:
    """A moment between two steps.

    `next` is the place of the step that follows; `promised` what somebody was told, `ledger` the
    ledger's file, and `facts` what is in it.
    """

    disk: Disk
    ledger: bytes
    facts: object
    promised: tuple
    next: Place | None
    spoiled: bool


class RecordingFileSystem(FileSystem):
    """Takes the steps on real files below a root, and records every moment between them.

    Parameters
    ----------
    root : Path
        Stands for the disk.
    disk : Disk
        What is on it.
    fault : Fault, optional
        Which step is spoiled.
    nameless : bool
        False: it knows no nameless files, as NFS.
    """

    def __init__(
        self, root: Path, disk: Disk, fault: Fault | None = None, *, nameless: bool = True
    ) -> None:
        self.root = root
        self.points: list[Point] = []
        self.places: set[Place] = set()
        self._disk = disk
        self._fault = fault
        self._nameless = nameless
        self._descriptors: dict[int, int] = {}
        self._promised: tuple = ()
        self._ledger: Callable[[], tuple[bytes, object]] = lambda: (b"", None)
        self._ledger_now: tuple[bytes, object] = b"", None
        self._spoiled = False
        #: a step that comes too late, and what it waits for
        self._late: tuple[Callable[[], None], Callable[[str, int | None], bool]] | None = None

    # -- what happens beside the files ---------------------------------------------------------

    def watch(self, ledger: Callable[[], tuple[bytes, object]], promised: tuple) -> None:
        """Begin: `ledger` reads the ledger's file and facts; `promised` was promised before."""
        self._ledger, self._ledger_now, self._promised = ledger, ledger(), promised

    def committed(self) -> None:
        """Note that the ledger has changed."""
        self._certain()
        self._ledger_now = self._ledger()
        self._after("committed", None)

    def promise(self, *told: object) -> None:
        """Note that somebody was told something that has to be true from here on."""
        self._certain()
        self._promised += told
        self._after("promised", None)

    def end(self) -> None:
        """Note the moment after the last step."""
        self._disk.notice(self.root)
        self._point(None)

    # -- steps ---------------------------------------------------------------------------------
    # A path of the spool leads through a descriptor; the disk knows its name.

    def open_nameless(self, folder):
        if not self._nameless:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        descriptor = super().open_nameless(folder)
        self._descriptors[descriptor] = self._disk.add()
        return descriptor

    def open_new(self, path):
        path = outside(path)
        self._disk.notice(self.root)
        descriptor = super().open_new(path)
        self._descriptors[descriptor] = self._give(path, self._disk.add())
        return descriptor

    def write(self, descriptor, pieces):
        super().write(descriptor, pieces)
        self._disk.inodes[self._descriptors[descriptor]].data += b"".join(pieces)

    def sync_data(self, descriptor):
        number = self._descriptors[descriptor]
        self._sync("sync_data", "", number, self._disk.sync_data)

    def sync_file(self, path):
        path = outside(path)
        self._disk.notice(self.root)
        self._sync("sync_file", path, self._inode(path), self._disk.sync_data)

    def sync_directory(self, path):
        path = outside(path)
        self._disk.notice(self.root)
        if path.is_relative_to(self.root):
            self._sync("sync_directory", path, self._inode(path), self._disk.sync_names)

    def link(self, source, target):
        source, target = outside(source), outside(target)
        number = self._inode(source)

        def link() -> None:
            FileSystem.link(self, source, target)
            self._give(target, number)

        self._name("link", number, target, link, lambda: None)

    def link_nameless(self, descriptor, target):
        target = outside(target)
        number = self._descriptors[descriptor]

        def link() -> None:
            FileSystem.link_nameless(self, descriptor, target)
            self._give(target, number)

        self._name("link_nameless", number, target, link, lambda: None)

    def rename(self, source, target):
        source, target = outside(source), outside(target)
        self._disk.notice(self.root)
        number, old = self._inode(source), self._inode(source.parent)
        if number is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(source))

        def rename() -> None:
            FileSystem.rename(self, source, target)
            home = self._inode(target.parent)
            self._disk.change(home, (old, source.name, None), (home, target.name, number))

        def clear() -> None:
            shutil.rmtree(source) if source.is_dir() else source.unlink()

        self._name("rename", number, target, rename, clear)

    def unlink(self, path):
        path = outside(path)
        number = self._inode(path)
        super().unlink(path)
        if number is not None:
            home = self._inode(path.parent)
            self._disk.change(home, (home, path.name, None))
        self._after("unlink", number)

    def make_folder(self, path):
        path = outside(path)
        self._disk.notice(self.root)
        super().make_folder(path)
        if self._inode(path) is None:
            self._give(path, self._disk.add(folder=True))

    # -- how they are taken --------------------------------------------------------------------

    def _inode(self, path: Path) -> int | None:
        return self._disk.find(str(path.relative_to(self.root)))

    def _give(self, path: Path, number: int) -> int:
        home = self._inode(path.parent)
        self._disk.change(home, (home, path.name, number))
        return number

    def _sync(self, step: str, path: Path | str, number: int, act: Callable[[int], None]) -> None:
        place = self._certain(step, path)
        how = self._spoils(place)
        if how == "too late":
            folder = number if step == "sync_directory" else None
            self._late = (lambda: act(number)), self._relies(number, folder)
        elif how is None:
            act(number)
            self._after(step, number)

    def _name(
        self,
        step: str,
        number: int,
        target: Path,
        act: Callable[[], None],
        clear: Callable[[], None],
    ) -> None:
        place = self._place(step, target)
        how = self._spoils(place)
        if how == "too late":
            home = self._inode(target.parent)
            self._late = act, lambda step, synced: step == "sync_directory" and synced == home
        elif how == "piece by piece":
            self._piecemeal(number, target, place)
            clear()
        elif how is None:
            act()
            self._after(step, number)

    def _relies(self, number: int, folder: int | None) -> Callable[[str, int | None], bool]:
        """Return what tells whether a step relies on a sync: of bytes, or of a folder's names."""

        def relies(step: str, other: int | None) -> bool:
            if step in {"committed", "promised"}:
                return True
            if step == "unlink":
                return folder is not None and other in self._disk.inodes[folder].names.values()
            if step in NAMES:
                return other == number or number in self._disk.inodes[other].names.values()
            return False

        return relies

    def _piecemeal(self, number: int, target: Path, place: Place) -> None:
        """Give a name first and the content after it, and sync that."""
        inode = self._disk.inodes[number]
        if inode.folder:
            if target.exists():
                raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
            target.mkdir()
            self._disk.notice(self.root)
            for name, child in list(inode.names.items()):
                self._point(place)
                (target / name).write_bytes(self._disk.inodes[child].data)
                self._disk.notice(self.root)
                self._disk.sync_data(self._inode(target / name))
            self._disk.sync_names(self._inode(target))
            return
        if place.step != "rename" and target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        made = self._inode(target)
        if made is None:
            made = self._give(target, self._disk.add())
        for data in (b"", inode.data[: len(inode.data) // 2], inode.data):
            target.write_bytes(data)
            self._disk.inodes[made].data = data
            self._point(place)
        self._disk.sync_data(made)

    def _spoils(self, place: Place) -> str | None:
        if self._fault is None or self._fault.place != place:
            return None
        self._spoiled = True
        return self._fault.how

    def _certain(self, step: str = "", path: Path | str = "") -> Place:
        """Note the moment before something becomes certain, or is told; what is left is most then.

        Other steps only add to what a power loss may leave, so that their moments are in this one.
        """
        place = self._place(step, path)
        self._point(place)
        return place

    def _after(self, step: str, number: int | None) -> None:
        if self._late is not None and self._late[1](step, number):
            act, self._late = self._late[0], None
            self._point(None)
            act()

    def _point(self, following: Place | None) -> None:
        disk = self._disk.copy()
        self.points.append(Point(disk, *self._ledger_now, self._promised, following, self._spoiled))

    def _place(self, step: str, path: Path | str) -> Place:
        frame = sys._getframe(2)
        while frame.f_code.co_filename == __file__:
            frame = frame.f_back
        name = neutral(str(path and path.relative_to(self.root)))
        place = Place(frame.f_code.co_qualname, step, name)
        if step:
            self.places.add(place)
        return place


#: Names that differ from run to run, and what stands for them.
_RANDOM = (
    (re.compile(r"(?<![0-9a-f])[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"), "<job>"),
    (re.compile(r"(?<![0-9a-f])[0-9a-f]{32}"), "<x>"),
)
#: Names that are many of a kind.
_MANY = ((re.compile(r"[^/]+\.dcm"), "*.dcm"), (re.compile(r"/\d\d(?=/|$)"), "/<nn>"))


def neutral(path: str, patterns: tuple = (*_RANDOM, *_MANY)) -> str:
    """Return a path that is the same in every run."""
    for pattern, word in patterns:
        path = pattern.sub(word, path)
    return path


def signature(tree: Tree) -> tuple:
    """Return what tells trees apart, in every run the same."""
    numbers: dict[int, int] = {}
    return tuple(
        (neutral(path, _RANDOM), numbers.setdefault(number, len(numbers)), data)
        for path, (number, data) in sorted(tree.items())
    )
