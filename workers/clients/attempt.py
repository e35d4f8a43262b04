# SPDX-License-Identifier: Apache-2.0
"""The folder of one run of a pipeline: its input filled, its output taken and checked.

::

    work/<job>/                       (`Spool.work_folder`)
      metadata.json                   what the submission wrote
      stdout.txt stderr.txt           of the last run
      <lease token>/                  one attempt: the command's current directory and its HOME
        input/<SOPInstanceUID>.dcm    copies; the spool's bytes stay as they were
        metadata.json
        output/                       what the command leaves here is its result
        tmp/

A run at another platform has such a folder while its output is collected, without input.

A run that died leaves its folder.  The next one renames it away first, so that a worker that lost
its lease and does not know yet can publish nothing from it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from adapter.dicom.part10 import read_file_meta
from adapter.dicom.tags import SOP_CLASS_UID, SOP_INSTANCE_UID
from adapter.dicom.uids import check_uid
from adapter.errors import NotYetVisible, PermanentError, UnreadableInstance
from adapter.files import FILE_SYSTEM, delete_tree, outside
from adapter.ledger.tasks import TaskFile
from workers.clients.disk_use import DEEPEST
from workers.clients.headers import HeaderReader
from workers.clients.platform import PayloadFile

#: ioctl(2) request: make a file share another one's blocks, copied only when written to.
_FICLONE = 0x40049409


class Attempt:
    """One run's folder.

    Parameters
    ----------
    work_folder : Path
        The job's folder.
    token : str
        The lease's token, which no other run has.
    """

    def __init__(self, work_folder: Path, token: str) -> None:
        self.job_folder = work_folder
        self.folder = work_folder / token
        self.input = self.folder / "input"
        self.output = self.folder / "output"
        self.temporary = self.folder / "tmp"
        self.metadata = self.folder / "metadata.json"

    def outside(self) -> Attempt:
        """Return the folder under the name by which another process reaches it."""
        return Attempt(outside(self.job_folder), self.folder.name)

    def clear_others(self) -> None:
        """Delete the folders of runs that died; none of them can publish anything from here on."""
        with suppress(FileNotFoundError):
            for entry in list(self.job_folder.iterdir()):
                if entry.is_dir() and not entry.is_symlink():
                    _delete(entry)

    def prepare(self, files: Sequence[PayloadFile], metadata: Path) -> None:
        """Make the folder and copy the payload into it.

        Raises
        ------
        NotYetVisible
            If a file is not there, or not all of it.
        """
        self.make_output()
        try:
            for folder in (self.input, self.temporary):
                folder.mkdir(mode=0o700)
            self.input.chmod(0o755)  # an isolated run may be another user's; nobody else gets here
            _copy(metadata, self.metadata)
            for file in files:
                target = self.input / file.name
                _copy(file.path, target)
                if target.stat().st_size != file.size:
                    raise NotYetVisible(f"{file.name} is not wholly visible (yet)")
        except FileNotFoundError:
            raise NotYetVisible("a file of the payload is not visible (yet)") from None

    def make_output(self) -> None:
        """Make the folder with room for output.

        Raises
        ------
        NotYetVisible
            If the job's folder is not visible here.
        """
        FILE_SYSTEM.make_folder(self.job_folder)
        try:
            for folder in (self.folder, self.output):
                folder.mkdir(mode=0o700)
        except FileNotFoundError:
            raise NotYetVisible("the job's folder is not visible (yet)") from None

    def collect(self, reader: HeaderReader) -> tuple[Path, list[TaskFile]]:
        """Take the output: a flat folder of valid DICOM files, numbered, ready to be published.

        Raises
        ------
        PermanentError
            If there is no output, or any of it is no DICOM file that could be sent.
        """
        if self.output.is_symlink():
            raise _invalid("its folder was replaced by a symbolic link")
        found = sorted(_regular_files(self.output)) if self.output.exists() else []
        if not found:
            raise PermanentError("the pipeline ended well but left no output", "no-output")
        folder = self.folder / f"publish-{uuid.uuid4().hex}"
        folder.mkdir(mode=0o700)
        names: dict[str, str] = {}
        for number, path in enumerate(found, start=1):
            path.chmod(0o600)
            if path.stat().st_uid != os.geteuid():
                os.chown(path, os.geteuid(), os.getegid())
            target = path.rename(folder / f"{number:06d}.dcm")
            names[target.name] = _as_text(path.relative_to(self.output))
        return folder, read_results(folder, reader, names)

    def remove(self) -> None:
        """Delete the folder; the output streams and the metadata stay with the job."""
        with suppress(FileNotFoundError):
            _delete(self.folder)


def read_results(
    folder: Path, reader: HeaderReader, names: Mapping[str, str] | None = None
) -> list[TaskFile]:
    """Return what is in a folder of results, in order, once all of it has been found valid.

    Parameters
    ----------
    folder : Path
        The folder.
    reader : HeaderReader
        Reads the headers.
    names : mapping of str to str, optional
        What the pipeline called the files, for errors.

    Raises
    ------
    NotYetVisible
        If the folder, which another host may have published, is not to be seen here.
    PermanentError
        If a file is no DICOM file that could be sent as it is.

    References
    ----------
    PS3.10 section 7.1; PS3.4 Annex B.2.1 (the UIDs of a C-STORE are those of its data set).
    """
    try:
        found = sorted(folder.iterdir())
    except FileNotFoundError:
        raise NotYetVisible("a folder of results is not visible (yet)") from None
    results: list[TaskFile] = []
    names_by_uid: dict[str, str] = {}
    for path in found:
        name = (names or {}).get(path.name, path.name)
        result = _read_result(path, name, reader)
        if other := names_by_uid.get(result.sop_instance_uid):
            raise _invalid(f"{other} and {name} have the same SOP Instance UID")
        names_by_uid[result.sop_instance_uid] = name
        results.append(result)
    return results


def _read_result(path: Path, name: str, reader: HeaderReader) -> TaskFile:
    try:
        header = reader.read(path, (SOP_CLASS_UID, SOP_INSTANCE_UID))
        with path.open("rb") as file:
            meta = read_file_meta(file)
        check_uid(header.transfer_syntax_uid)
    except UnreadableInstance as error:
        raise _invalid(f"{name}: {error}") from None
    except ValueError:
        raise _invalid(f"{name}: the file meta information names no syntax") from None
    for tag, element in ((SOP_CLASS_UID, 0x0002), (SOP_INSTANCE_UID, 0x0003)):
        if header.values.get(tag) is None or header.values[tag] != meta.get(element):
            raise _invalid(f"{name}: its UIDs differ from its file meta information's")
    return TaskFile(
        path=path.name,
        size=header.size,
        sop_class_uid=header.sop_class_uid,
        sop_instance_uid=header.sop_instance_uid,
        transfer_syntax_uid=header.transfer_syntax_uid,
        digest=header.digest,
    )


def _regular_files(output: Path) -> Iterator[Path]:
    """Yield the files below a folder, and accept nothing but files of one name and folders."""
    left = [output]
    while left:
        folder = left.pop()
        if len(folder.parts) - len(output.parts) > DEEPEST:
            raise _invalid(f"its folders are more than {DEEPEST} deep")
        try:
            entries = os.scandir(folder)
        except PermissionError:
            raise _invalid(f"{_as_text(folder.relative_to(output))}: cannot be opened") from None
        with entries:
            for entry in entries:
                path = Path(entry.path)
                name = _as_text(path.relative_to(output))
                if entry.is_dir(follow_symlinks=False):
                    left.append(path)
                elif not entry.is_file(follow_symlinks=False):
                    raise _invalid(f"{name}: is no regular file, e.g. a link")
                elif entry.stat(follow_symlinks=False).st_nlink != 1:
                    raise _invalid(f"{name}: is a hard link; copy the file instead")
                else:
                    yield path


def _as_text(path: Path) -> str:
    """Return a path that a pipeline chose, as it can be shown: it may hold any bytes."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(path))
    return text if len(text) <= 100 else f"{text[:48]}...{text[-48:]}"


def _invalid(message: str) -> PermanentError:
    return PermanentError(f"the pipeline's output cannot be used: {message}", "invalid-output")


def _copy(source: Path, target: Path) -> None:
    """Copy a file's bytes into a new file, by reference where the file system can."""
    with source.open("rb") as reader, target.open("xb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            shutil.copyfileobj(reader, writer, 1 << 20)
    target.chmod(0o644)


def _delete(folder: Path) -> None:
    """Delete a folder, out of everybody's way at once and then file by file."""
    gone = folder.with_name(f".gone-{uuid.uuid4().hex}")
    folder.rename(gone)
    delete_tree(gone)
