# SPDX-License-Identifier: Apache-2.0
"""Compares senders: ours as the export stage uses it, and DCMTK's storescu.

Both send the same files to the same receiver, DCMTK's storescp, which throws them away; so the
receiver is as fast as it can be, and what differs is the senders.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from adapter.models import DicomDestination
from adapter.scu.files import examine
from adapter.scu.store import store
from adapter.settings import Scu
from benchmarks.load import make_file
from benchmarks.receivers import AE_TITLE, await_listening, free_port

#: PDU lengths that the receiver accepts: DCMTK's default, and its maximum.
PDU_LENGTHS = (16_384, 131_072)


@dataclass(frozen=True)
class Sent:
    """The result of sending: seconds for all files, and CPU seconds of the sender."""

    seconds: float
    cpu: float


def here() -> bool:
    """Return whether DCMTK is installed."""
    return shutil.which("storescp") is not None


def ours(folder: Path, port: int) -> Sent:
    """Send a folder as the export stage does, in this process, like a long-running worker."""
    began, cpu = time.perf_counter(), time.process_time()
    names = sorted(path.name for path in folder.iterdir())
    files = [examine(folder, name, at) for at, name in enumerate(names)]
    destination = DicomDestination(name="bench", ae_title=AE_TITLE, host_ip="127.0.0.1", port=port)
    answers = list(store(files, destination, Scu()))
    if any(answer.status for answer in answers):
        raise RuntimeError("not all was stored")
    return Sent(time.perf_counter() - began, time.process_time() - cpu)


def storescu(folder: Path, port: int) -> Sent:
    """Send a folder with storescu, without the time of its start."""
    everything, one = _storescu(folder, port), _storescu(next(folder.iterdir()), port)
    return Sent(everything.seconds - one.seconds, everything.cpu - one.cpu)


def _storescu(what: Path, port: int) -> Sent:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    command = ["storescu", "-nh", "-xe", "-aec", AE_TITLE]
    command += ["+sd"] if what.is_dir() else []
    subprocess.run(
        [*command, "127.0.0.1", str(port), str(what)],
        check=True,
        capture_output=True,
        env=os.environ | {"TCP_NODELAY": "1"},
    )
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Sent(seconds, cpu)


def report(folder: Path, *, size: int, count: int, rounds: int) -> None:
    """Send `count` files of `size` bytes with each, in turn, and print a table."""
    files = folder / "files"
    files.mkdir()
    for number in range(count):
        make_file(files / f"{number:04d}.dcm", size, number)
    print(f"\n### Sending {count} CT slices of {size // 1000} kB, 1 association\n")
    print("| PDUs | sender | instances/s | MB/s | CPU ms |")
    print("|---" * 5 + "|")
    for length in PDU_LENGTHS:
        port = free_port()
        process = subprocess.Popen(
            ["storescp", "--ignore", "--max-pdu", str(length), str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"TCP_NODELAY": "1"},
        )
        try:
            await_listening(port, process)
            senders = {"this adapter": ours, "DCMTK storescu": storescu}
            runs: dict[str, list[Sent]] = {name: [] for name in senders}
            for send in senders.values():
                send(files, port)  # so that the files are in memory
            for _ in range(rounds):
                for name, send in senders.items():
                    runs[name].append(send(files, port))
        finally:
            process.terminate()
            process.wait()
        for name, sent in runs.items():
            rate = count / statistics.median(one.seconds for one in sent)
            cpu = statistics.median(one.cpu for one in sent) / count * 1e3
            print(f"| {length:,} | {name} | {rate:,.0f} | {rate * size / 1e6:,.0f} | {cpu:.2f} |")
    sys.stdout.flush()
