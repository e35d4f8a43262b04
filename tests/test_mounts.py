# SPDX-License-Identifier: Apache-2.0
"""What the kernel says of a volume, and how late that means new files are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapter import settings as settings_module
from adapter.mounts import mount_of

TABLE = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 22 0:40 / /srv/spool rw,noatime shared:9 - nfs4 files:/export {options}
41 22 0:41 / /srv/with\\040space rw - ceph 10.0.0.1:/ rw,name=adapter
42 22 0:42 / /over rw - nfs4 files:/hidden rw
43 22 0:43 / /over rw - tmpfs tmpfs rw
"""


@pytest.fixture
def lag(tmp_path: Path):
    def of(folder: str, options: str = "rw") -> float:
        table = tmp_path / "mountinfo"
        table.write_text(TABLE.format(options=options))
        return mount_of(Path(folder), table).lag_seconds

    return of


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ("rw,vers=4.1,hard", 60.0),
        ("rw,acdirmin=0,acdirmax=3", 3.0),
        ("rw,acregmin=0,acregmax=0,acdirmin=0,acdirmax=0", 0.0),
        ("rw,sync,noac", 0.0),
    ],
)
def test_nfs_is_as_late_as_its_options_say(lag, options: str, seconds: float) -> None:
    """A directory is remembered for acdirmax seconds, 60 unless given, and not at all by noac."""
    assert lag("/srv/spool/adapter", options) == seconds


@pytest.mark.parametrize("folder", ["/srv", "/srv/with space/spool", "/over/spool"])
def test_what_is_local_or_coherent_is_not_late(lag, folder: str) -> None:
    """A local disk, CephFS, and what is mounted over an NFS mount show everything at once."""
    assert lag(folder) == 0.0


def test_the_mount_of_a_folder_is_the_nearest(tmp_path: Path) -> None:
    """The deepest mount point above a folder says what it is on, spaces and all."""
    table = tmp_path / "mountinfo"
    table.write_text(TABLE.format(options="rw"))

    found = mount_of(Path("/srv/with space/spool"), table)

    assert (found.kind, found.source, str(found.point)) == (
        "ceph",
        "10.0.0.1:/",
        "/srv/with space",
    )
    assert found.options["name"] == "adapter"


def test_the_setting_overrides_the_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`lagSeconds` counts where it is given; a local disk's is 0; files are kept that long."""
    assert settings_module.load(data=tmp_path).lag_seconds == 0.0

    monkeypatch.setenv("DICOMADAPTER__STORAGE__LAGSECONDS", "7")

    late = settings_module.load(data=tmp_path)
    assert (late.lag_seconds, late.retention_seconds) == (7.0, 7.0)
