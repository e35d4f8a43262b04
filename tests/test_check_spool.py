# SPDX-License-Identifier: Apache-2.0
"""`check-spool`: what a volume has to be able to do, and that it is told when one cannot."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from adapter import mounts, volume
from adapter.embedded.roles import own_command
from adapter.settings import Storage
from adapter.volume import DOUBTFUL, GOOD, UNUSABLE, check
from tests.late_volume import environment

STORAGE = Storage(watermark_percent=100, reserve_space_gb=0)


def results(folder: Path, storage: Storage = STORAGE) -> dict[str, set[str]]:
    """Return the results of each probe."""
    found: dict[str, set[str]] = {}
    for finding in check(folder, storage):
        found.setdefault(finding.probe, set()).add(finding.result)
    return found


def mounted(monkeypatch: pytest.MonkeyPatch, kind: str, options: str) -> None:
    """Let the kernel say that everything is on such a mount."""
    said = dict(option.partition("=")[::2] for option in options.split(","))
    mount = mounts.Mount(Path("/srv"), kind, "files:/export", said)
    monkeypatch.setattr(volume, "mount_of", lambda _folder: mount)


def test_a_local_disk_can_hold_a_spool(tmp_path: Path) -> None:
    """Every probe is good on a local disk, and nothing is left of it."""
    found = results(tmp_path / "spool")

    assert set().union(*found.values()) <= {GOOD, DOUBTFUL}
    assert found["hard link"] == found["rename"] == found["folder rename"] == {GOOD}
    assert {"sync of a file", "sync of a folder", "clock", "space", "mount", "lag"} <= set(found)
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_volume_without_hard_links_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file system refuses is unusable, with its own reason."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)

    assert results(tmp_path)["hard link"] == {UNUSABLE}


def test_a_volume_that_replaces_by_linking_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system whose hard links are copies, or replace a name, is found out."""
    monkeypatch.setattr(os, "link", lambda one, two: Path(two).write_bytes(Path(one).read_bytes()))

    assert results(tmp_path)["hard link"] == {UNUSABLE}


@pytest.mark.parametrize(
    ("mount", "probe", "result"),
    [
        ("nfs4 rw,hard,vers=4.2,local_lock=none,acdirmax=3", "mount", {GOOD}),
        ("nfs4 rw,hard,vers=4.2,local_lock=none,acdirmax=3", "lag", {GOOD}),
        ("nfs4 rw,hard,vers=4.2,local_lock=none", "lag", {DOUBTFUL}),
        ("nfs4 rw,soft,vers=4.2,local_lock=none", "mount", {GOOD, UNUSABLE}),
        ("nfs4 rw,hard,vers=4.2,local_lock=all", "mount", {GOOD, DOUBTFUL}),
        ("nfs rw,hard,vers=3,local_lock=none", "mount", {GOOD, DOUBTFUL}),
        ("nfs4 ro,hard,vers=4.2", "mount", {GOOD, UNUSABLE}),
        ("tmpfs rw", "mount", {GOOD, DOUBTFUL}),
    ],
)
def test_mount_options_are_judged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mount: str,
    probe: str,
    result: set[str],
) -> None:
    """NFS has to be hard, 4.1 or newer, and remember directories for a short time only."""
    mounted(monkeypatch, *mount.split())

    assert results(tmp_path)[probe] == result


def test_a_lag_shorter_than_the_mounts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`lagSeconds` below what the mount allows would split studies: that is said, and refused."""
    mounted(monkeypatch, "nfs4", "rw,hard,vers=4.2,acdirmax=30")
    hasty = STORAGE.model_copy(update={"lag_seconds": 3.0})

    assert results(tmp_path, hasty)["lag"] == {UNUSABLE}


def test_a_full_volume_is_told(tmp_path: Path) -> None:
    """A volume above its watermark is doubtful: nothing would be received."""
    full = STORAGE.model_copy(update={"reserve_space_gb": 1e9})

    assert results(tmp_path, full)["space"] == {DOUBTFUL}


def start(data: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """Start `check-spool` as on a host of its own."""
    return subprocess.Popen(
        own_command("check-spool", "--json", "--data", str(data), *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DICOMADAPTER__STORAGE__RESERVESPACEGB": "0", **more},
    )


def test_two_hosts_measure_how_late_they_see_each_other(tmp_path: Path) -> None:
    """A peer's files that come later than is counted on make the volume unusable."""
    spool = tmp_path / "spool"
    spool.mkdir()
    lags = {"hasty": "0", "patient": "5"}
    hosts = [
        (
            word,
            start(
                tmp_path / host,
                *("--peer", word, "--wait", "10"),
                DICOMADAPTER__STORAGE__TEMPORARY=str(spool),
                DICOMADAPTER__STORAGE__LAGSECONDS=lags[word],
                **environment(spool, tmp_path / "aside", 2.5, host),
            ),
        )
        for word in lags
        for host in ("one", "two")
    ]
    found: dict[str, list[tuple[int, str]]] = {word: [] for word in lags}
    for word, host in hosts:
        output, complaints = host.communicate(timeout=100)
        assert output, complaints
        (peer,) = [finding for finding in json.loads(output) if finding["probe"] == "peer"]
        found[word].append((host.returncode, peer["result"]))
        assert ("is not fit for a spool" in complaints) == (host.returncode == 1)
    assert found == {"hasty": [(1, UNUSABLE)] * 2, "patient": [(0, GOOD)] * 2}
    assert list(spool.iterdir()) == []


def test_a_lag_that_eats_the_patience_is_doubted(tmp_path: Path) -> None:
    """`check-config` warns when files may be late for longer than half of `visibilitySeconds`."""
    checked = subprocess.run(
        own_command("check-config", "--data", str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "DICOMADAPTER__STORAGE__LAGSECONDS": "61"},
    )
    assert "visibilitySeconds: 120 s is less than twice" in " ".join(checked.stderr.split())
