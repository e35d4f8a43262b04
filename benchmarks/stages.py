# SPDX-License-Identifier: Apache-2.0
"""Measures all stages end to end: ``make bench-stages``.

Studies are sent by DCMTK's storescu, received, grouped, run through a pipeline that copies them and
sent on to DCMTK's storescp, with 1, 2 and 4 workers for each stage, on SQLite and on PostgreSQL.
Counted is from the first C-STORE to the last file that the destination has confirmed, less the five
seconds of quiet that close a group.  The processor time of each role is read from /proc.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from sqlalchemy import func, select

from adapter.dicom.part10 import part10_header
from adapter.ledger.schema import exports, jobs
from tests.support_postgresql import PostgreSQL
from tests.support_stack import Pacs, Stack, stored
from tests.support_stages import encode, make_instance

#: Quiet time of a group in seconds: the minimum.
QUIET = 5.0

#: One process for each; the three stages with little work share one.
WORKERS = (
    "worker:notification",
    "worker:grouping,submission,reclamation",
    "worker:pipeline",
    "worker:export",
)
PIPELINE = {
    "name": "Copy",
    "command": ["cp", "-r", "{input}/.", "{output}"],
    "destinations": ["PACS"],
}


def write_studies(folder: Path, studies: int, instances: int, size: int) -> list[Path]:
    """Write studies of instances of `size` bytes, each in a folder."""
    folders = []
    for number in range(studies):
        uids = {"StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid()}
        folders.append(folder / f"{number:03d}")
        folders[-1].mkdir(parents=True)
        for instance in range(instances):
            ds = make_instance(**uids, EncapsulatedDocument=os.urandom(size))
            header = part10_header(
                sop_class_uid=CTImageStorage,
                sop_instance_uid=ds.SOPInstanceUID,
                transfer_syntax_uid=ExplicitVRLittleEndian,
                calling_ae_title="T",
                called_ae_title="T",
            )
            (folders[-1] / f"{instance:04d}.dcm").write_bytes(header + encode(ds))
    return folders


def processor_seconds(root: int) -> float:
    """Return the processor time of a process, of its descendants, and of those it has reaped."""
    cpu_times, children = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            cpu_times[int(entry.name)] = sum(map(int, fields[11:15]))
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    total, left = 0, [root]
    while left:
        pid = left.pop()
        total += cpu_times.get(pid, 0)
        left += children.get(pid, [])
    return total / os.sysconf("SC_CLK_TCK")


@contextmanager
def adapter(folder: Path, url: str | None, workers: int) -> Iterator[tuple[list[Stack], Pacs]]:
    """Provide a running adapter with so many workers for each stage."""
    pacs = Pacs(folder / "pacs")
    sections: dict[str, Any] = {
        "storage": {"temporary": str(folder / "spool"), "retentionSeconds": 86400},
        "workers": {"dueWorkPollSeconds": 1, "leaseSeconds": 30},
        "dicom": {"scp": {"processes": 2}},
    }
    if url is not None:
        sections["database"] = {"url": url}
    hosts = [Stack(folder / "0", {"copy": PIPELINE}, **sections)]
    try:
        hosts[0].add_destination("PACS", pacs.port)
        hosts[0].start("redis")
        hosts += [hosts[0].join(folder / str(n), **sections) for n in range(1, workers)]
        hosts[0].launch("scp")
        for host in hosts:
            host.launch(*WORKERS)
        hosts[0].await_ready("scp")
        for host in hosts:
            host.await_ready(*WORKERS)
        hosts[0].configure("BRAIN", processor_settings={"pipeline-copy": "copy"})
        yield hosts, pacs
    finally:
        for host in reversed(hosts):
            host.close()
        pacs.close()


def roles_of(hosts: list[Stack]) -> dict[str, list[int]]:
    """Return the process ids of each role."""
    found = {"SCP": [hosts[0].pid("scp")], "Redis": [hosts[0].pid("redis")]}
    for role in WORKERS:
        name = role.partition(":")[2].replace("grouping,submission,reclamation", "the short three")
        found[name] = [host.pid(role) for host in hosts]
    return found


def measure(folder: Path, url: str | None, server: int | None, args: Any, workers: int) -> str:
    """Send everything through all stages once, and return a row of the table."""
    studies = write_studies(folder / "studies", args.studies, args.instances, args.size)
    total = args.studies * args.instances
    with adapter(folder, url, workers) as (hosts, _pacs):
        roles = roles_of(hosts)
        if server is not None:
            roles["PostgreSQL"] = [server]

        def spent() -> dict[str, float]:
            return {name: sum(map(processor_seconds, pids)) for name, pids in roles.items()}

        before, busy, began = spent(), machine_seconds(), time.monotonic()
        lanes = [studies[lane :: args.senders] for lane in range(args.senders)]
        senders = [hosts[0].storescu("BRAIN", *lane) for lane in lanes if lane]
        assert sum(map(stored, senders)) == total
        received = time.monotonic() - began
        await_all(hosts[0], args.studies)
        took = time.monotonic() - began - QUIET
        cores = (machine_seconds() - busy) / (took + QUIET)
        after = spent()
    shares = ", ".join(
        f"{name} {1000 * (after[name] - before[name]) / total:.1f}" for name in roles
    )
    return (
        f"| {'SQLite' if url is None else 'PostgreSQL'} | {workers} | {total / received:.0f} "
        f"| {took:.1f} | {total / took:.0f} | {cores:.2f} of {os.cpu_count()} | {shares} |"
    )


def machine_seconds() -> float:
    """Return the busy processor time of the machine, senders and PACS included."""
    user, nice, system, _idle, _wait, *rest = map(
        int, Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + sum(rest[:2])) / os.sysconf("SC_CLK_TCK")


def await_all(stack: Stack, studies: int) -> None:
    """Wait until every study's export has succeeded."""
    deadline = time.monotonic() + 300
    done = select(func.count()).where(exports.c.state == "succeeded")
    parked = select(func.count()).where(jobs.c.state == "parked")
    while True:
        with stack.adapter.ledger.read() as connection:
            if connection.execute(done).scalar_one() == studies:
                return
            assert connection.execute(parked).scalar_one() == 0, "a job was parked"
        assert time.monotonic() < deadline, "the stages have not come to their end in five minutes"
        time.sleep(0.1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="make bench-stages", description=__doc__)
    parser.add_argument("--ledger", choices=("sqlite", "postgresql"), action="append")
    parser.add_argument("--workers", type=int, action="append", help="for each stage")
    parser.add_argument("--studies", type=int, default=24)
    parser.add_argument("--instances", type=int, default=50, help="of a study")
    parser.add_argument("--size", type=int, default=131_072, help="bytes of an instance")
    parser.add_argument("--senders", type=int, default=4)
    parser.add_argument("--smoke", action="store_true", help="only see that it works")
    args = parser.parse_args()
    if args.smoke:
        args.studies, args.instances, args.size, args.workers = 2, 3, 1000, [1]
        args.ledger = args.ledger or ["sqlite"]
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} processors, Python "
        f"{platform.python_version()}, {args.studies} studies of {args.instances} instances of "
        f"{args.size} bytes, {args.senders} senders\n"
    )
    print(
        "| ledger | workers of each stage | received/s | seconds | end to end/s | processors busy "
        "| processor time of an instance (ms) |\n|---|---|---|---|---|---|---|"
    )
    for ledger in args.ledger or ["sqlite", "postgresql"]:
        server = PostgreSQL() if ledger == "postgresql" else None
        try:
            for workers in args.workers or [1, 2, 4]:
                # Processes that have been killed may leave children that write for a moment yet.
                with tempfile.TemporaryDirectory(
                    prefix="stages-", ignore_cleanup_errors=True
                ) as folder:
                    url = None if server is None else server.create_database()
                    pid = None if server is None else server._process.pid  # noqa: SLF001
                    print(measure(Path(folder), url, pid, args, workers), flush=True)
        finally:
            if server is not None:
                server.close()


if __name__ == "__main__":
    main()
