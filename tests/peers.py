# SPDX-License-Identifier: Apache-2.0
"""The programs that tests talk to as real peers, or measure with: one list decides all about them.

`python -m tests.peers` (`make test-peers`) installs what is missing.  A test says what it needs by
the mark `needs("dcmtk")` or by calling `need("dcmtk")`.  It is skipped where that is missing, and
fails where ``CI=true``.  Nothing else in tests skips: `tests/test_peers.py` reads their code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

import pytest

#: Where absolute paths start.
ROOT = Path("/")


@dataclass(frozen=True)
class Peer:
    """A Debian package, and what tests use of it.

    Attributes
    ----------
    purpose : str
        What tests use it for.
    programs : tuple of str
        Programs on PATH that tests start.
    files : tuple of str
        Patterns of further files, as absolute paths.
    service : str or None
        A service that the package starts, which no test uses.
    """

    purpose: str
    programs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    service: str | None = None

    def lacks(self) -> list[str]:
        """Return the programs and files that are missing."""
        programs = [name for name in self.programs if find(name) is None]
        files = [name for name in self.files if not any(ROOT.glob(name.removeprefix("/")))]
        return programs + files


#: By the name of the Debian package.
PEERS = {
    "chromium": Peer("a browser, for the pages that people see", ("chromium",)),
    "dcmtk": Peer("senders and receivers of DICOM", ("storescu", "storescp", "echoscu", "dcmsend")),
    "default-jre-headless": Peer("runs PixelMed", ("java",)),
    "gcc": Peer("compiles the benchmark's sender", ("cc",)),
    "git": Peer("gets the code of the release before", ("git",)),
    "iproute2": Peer("makes networks whose cable can be pulled", ("ip",)),
    "libc6-dev": Peer("compiles the benchmark's sender", files=("/usr/include/stdio.h",)),
    "libgdcm-tools": Peer("a sender of DICOM", ("gdcmscu",)),
    "libpixelmed-java": Peer("a sender of DICOM", files=("/usr/share/java/pixelmed.jar",)),
    "openssl": Peer("makes certificates", ("openssl",)),
    "orthanc": Peer("a PACS", ("Orthanc",), service="orthanc"),
    "postgresql": Peer(
        "the ledger of several hosts",
        ("postgres", "initdb"),
        service="postgresql",
    ),
    "prometheus": Peer("reads and plays the alerts", ("promtool",), service="prometheus"),
}


class Lack(StrEnum):
    """What a machine may lack that no package brings: a test that needs it is skipped anywhere."""

    EXT4 = "this is not ext4"
    HISTORY = "the code before it is in the history, which is not here"
    ISOLATION = "pipelines cannot be isolated here"
    IPV6 = "this machine has no IPv6"
    MOUNTING = "no file system may be mounted here"
    NETWORKS = "no network may be made here"
    OTHER_USERS = "no other user may run a Python here"


def find(program: str) -> Path | None:
    """Return where a program is; None if it is not there.

    Debian keeps the programs of each release of PostgreSQL in a folder of their own, off PATH: the
    newest release comes first.
    """
    releases = sorted(
        ROOT.glob("usr/lib/postgresql/*/bin"), key=lambda path: int(path.parent.name), reverse=True
    )
    path = os.pathsep.join([*map(str, releases), os.environ.get("PATH", os.defpath)])
    found = shutil.which(program, path=path)
    return None if found is None else Path(found)


def need(*packages: str) -> None:
    """Skip the running test if a peer is missing; where ``CI=true``, let it fail.

    Parameters
    ----------
    packages : str
        Debian packages of the list.
    """
    lacks = {package: PEERS[package].lacks() for package in packages}
    missing = [f"{package} ({', '.join(what)})" for package, what in lacks.items() if what]
    if missing:
        text = f"not installed: Debian's {', '.join(missing)}; run `make test-peers` as root"
        if os.environ.get("CI") == "true":
            pytest.fail(text, pytrace=False)
        pytest.skip(text)


def cannot(lack: Lack) -> NoReturn:
    """Skip the running test: this machine lacks what no package brings."""
    pytest.skip(lack)


# -- installing ------------------------------------------------------------------------------------


def install() -> str:
    """Install the missing packages where that is possible; return what there is to say."""
    missing = [package for package, peer in PEERS.items() if peer.lacks()]
    if not missing:
        return ""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return (
            f"Missing: Debian's {' '.join(missing)}. "
            "The tests that need them are skipped, or fail where CI=true."
        )
    print("Installing", *missing, "for the tests ...", flush=True)  # noqa: T201 - it takes minutes
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"]
    subprocess.run([*apt, "update"], check=True)
    with _no_service_starts():
        subprocess.run(
            [*apt, "install", "--yes", "--no-install-recommends", *missing],
            check=True,
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdout=subprocess.DEVNULL,
        )
    for service in filter(None, (PEERS[package].service for package in missing)):
        # Nor does it start with the machine: tests start what they need themselves, on loopback.
        subprocess.run(["update-rc.d", service, "disable"], check=True)
    return ""


@contextmanager
def _no_service_starts() -> Iterator[None]:
    """Let packages start no service: some would listen beyond loopback.

    Debian's own way (invoke-rc.d(8)): a policy that forbids it, unless the machine has one.
    """
    policy = ROOT / "usr/sbin/policy-rc.d"
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\n# Written by the tests' installation of peers.\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


if __name__ == "__main__":
    try:
        said = install()
    except subprocess.CalledProcessError as error:
        said = f"Could not install all peers: {error}"
    if said:
        print(said, file=sys.stderr)  # noqa: T201 - it is a program
