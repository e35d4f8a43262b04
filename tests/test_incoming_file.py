# SPDX-License-Identifier: Apache-2.0
"""A file on its way into incoming/: nameless where that can be, else under a temporary name."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess

import pytest

from adapter.models import ArrivalId
from adapter.spool import Spool
from tests import peers

ASSOCIATION = "0123456789ab"
ARRIVAL = ArrivalId(1_700_000_000.0, ASSOCIATION, 1, 1)


@pytest.fixture(params=["nameless", "named"])
def spool(request, tmp_path, monkeypatch):
    real = os.open

    def without_nameless_files(path, flags, *rest, **options):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not here")
        return real(path, flags, *rest, **options)

    if request.param == "named":
        monkeypatch.setattr(os, "open", without_nameless_files)
    found = Spool(tmp_path / "spool")
    found.create()
    found.mode = request.param
    return found


def names(spool):
    return sorted(path.name for path in spool.incoming.glob("*/*"))


@pytest.mark.parametrize("durable", [True, False])
def test_it_appears_whole(spool, durable):
    """Nothing is visible until it is published, and then all of it is."""
    file = spool.receive(ASSOCIATION, durable=durable)
    file.write(b"ab")
    file.write(memoryview(b"cd"))
    assert list(spool.list_incoming()) == []
    file.sync()

    path = file.publish(ARRIVAL)

    assert (path, path.read_bytes()) == (spool.incoming_path(str(ARRIVAL)), b"abcd")
    assert path.stat().st_mode & 0o777 == 0o600
    assert names(spool) == [f"{ARRIVAL}.dcm"]


def test_discarded_it_is_gone(spool):
    """Before or after it was published, a file that is discarded leaves nothing."""
    for publish in (False, True):
        file = spool.receive(ASSOCIATION)
        file.write(b"ab")
        if publish:
            file.publish(ARRIVAL)
        file.discard()

        assert names(spool) == []


def test_what_a_death_leaves(spool):
    """A nameless file goes with its process; a named one is deleted when it is old."""
    file = spool.receive(ASSOCIATION)
    file.write(b"ab")
    os.close(file._descriptor)

    assert len(names(spool)) == (spool.mode == "named")
    spool.delete_stale(before=2**40)
    assert names(spool) == []


def test_a_name_is_given_once(tmp_path):
    """A file never takes the place of another."""
    spool = Spool(tmp_path / "spool")
    spool.create()
    spool.receive(ASSOCIATION).publish(ARRIVAL)
    second = spool.receive(ASSOCIATION)

    with pytest.raises(FileExistsError):
        second.publish(ARRIVAL)
    second.discard()

    assert names(spool) == [f"{ARRIVAL}.dcm"]


def test_what_is_written_in_part_is_written_on(spool, monkeypatch):
    """A write that takes only a part of the bytes loses none and doubles none."""
    monkeypatch.setattr(
        os, "writev", lambda descriptor, pieces: os.write(descriptor, pieces[0][:3])
    )
    file = spool.receive(ASSOCIATION)
    file.write(b"abcde", memoryview(b"fgh"))

    assert file.publish(ARRIVAL).read_bytes() == b"abcdefgh"


def file_system(path):
    done = subprocess.run(
        ["stat", "--file-system", "--format", "%T", path],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return "ext4" if done.stdout.strip() == "ext2/ext3" else done.stdout.strip()


def test_the_shards_are_laid_apart(tmp_path):
    """On ext4 incoming/ has the flag that spreads its shards over the disk."""
    spool = Spool(tmp_path / "spool")
    spool.create()
    descriptor = os.open(spool.incoming, os.O_RDONLY)
    try:
        if file_system(spool.folder) != "ext4":
            peers.cannot(peers.Lack.EXT4)
        (flags,) = struct.unpack("l", fcntl.ioctl(descriptor, 0x80086601, bytes(8)))
    finally:
        os.close(descriptor)
    assert flags & 0x00020000
