# SPDX-License-Identifier: Apache-2.0
"""Compares receivers: ``make bench``, or with ``--smoke`` a quick check that it works.

In each round every receiver has its turn, so a machine whose speed drifts affects all alike.  The
medians of the rounds are printed, as a table for docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from adapter.files import spread_subdirectories
from adapter.models import ArrivalId
from adapter.scp.connection import RECEIVE_BYTES
from adapter.spool import IncomingFile
from adapter.spool.held_folder import HeldFolder
from benchmarks import receiver_under_load, sending
from benchmarks.load import make_file
from benchmarks.receivers import (
    AE_TITLE,
    RECEIVERS,
    Pynetdicom,
    Receiver,
    await_listening,
    free_port,
)
from benchmarks.receivers import Orthanc as OrthancReceiver

HERE = Path(__file__).parent
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """What is sent: objects of `size` bytes over so many associations."""

    name: str
    size: int
    associations: int
    count: int


@dataclass
class Measurement:
    """The result of one run of one receiver."""

    rate: float
    megabytes: float
    cpu: float
    memory: float
    p50: float
    p99: float


def loads(*, smoke: bool) -> list[Load]:
    """Return what is measured."""
    few = 40 if smoke else 1
    found = [Load("CT, 530 kB", 530_000, n, 800 // few) for n in (1, 4, 8)]
    found += [Load("small, 30 kB", 30_000, n, 4000 // few) for n in (1, 4, 8)]
    large = 3 if smoke else 300
    return [*found, Load(f"{large} MB", large * 1_000_000, 1, 1 if smoke else 2)]


class Watch:
    """CPU time and peak memory of a process and those it has started.

    Parameters
    ----------
    pid : int
        The process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._cpu = self._seconds()
        self._thread.start()

    def stop(self) -> tuple[float, float]:
        """Return CPU seconds since the start, and the peak of the proportional memory in MB."""
        self._done.set()
        self._thread.join()
        return self._seconds() - self._cpu, self._peak

    def _run(self) -> None:
        while True:
            self._peak = max(self._peak, sum(map(_memory, self._tree())))
            if self._done.wait(0.25):
                return

    def _tree(self) -> list[int]:
        found = [self._pid]
        for pid in found:
            with suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                found += [int(child) for child in children.split()]
        return found

    def _seconds(self) -> float:
        total = 0.0
        for pid in self._tree():
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                # With those of children that have ended, which DCMTK has one of per association.
                total += sum(map(int, fields[11:15])) / _TICKS
        return total


def _memory(pid: int) -> float:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1000
    return 0.0


def send(sender: Path, port: int, load: Load, count: int, file: Path, *more: str) -> list[float]:
    """Run the sender and return its measurements."""
    arguments = ["127.0.0.1", str(port), AE_TITLE, "SENDER", str(load.associations), str(count)]
    done = subprocess.run(
        [str(sender), *arguments, str(file), *more], check=True, capture_output=True, text=True
    )
    return [float(word) for word in done.stdout.split()]


def measure(receiver: Receiver, load: Load, sender: Path, file: Path, folder: Path) -> Measurement:
    """Measure one receiver once, in a folder of its own."""
    slow = isinstance(receiver, Pynetdicom | OrthancReceiver)
    count = max(load.associations, load.count // (8 if slow and load.count > 8 else 1))
    folder.mkdir()
    port = free_port()
    process = receiver.start(folder, port, load.associations)
    try:
        await_listening(port, process)
        send(sender, port, load, 4 * load.associations, file)  # to warm up all processes
        time.sleep(1.0)  # and has done for once what the first instance makes it do
        watch = Watch(process.pid)
        instances, seconds, size, p50, p99 = send(sender, port, load, count, file)
        time.sleep(0.1)
        cpu, memory = watch.stop()
    finally:
        process.terminate()
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    put_to_rest(folder)
    return Measurement(
        instances / seconds, instances * size / seconds / 1e6, cpu / instances * 1e3, memory,
        p50 / 1e3, p99 / 1e3,
    )  # fmt: skip


def put_to_rest(folder: Path) -> None:
    """Sync everything that was written before, and drop its page cache, before the next run.

    Only large files are deleted.  ext4 skips inodes that were freed in the last minutes one by one,
    which slows down the creation of files near many of them.
    """
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                large = os.fstat(file.fileno()).st_size > 100_000_000
            if large:
                path.unlink()


def sync_milliseconds(folder: Path) -> float:
    """Return the median time of an fdatasync after 4 KiB were appended to a file."""
    times = []
    with (folder / "sync").open("wb") as file:
        for _ in range(100):
            file.write(os.urandom(4096))
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def disk_rate(folder: Path, load: Load) -> float:
    """Return how many files per second the disk takes, written and synced without a network.

    There are as many writers as associations, each in its own directory; they write like the
    adapter.
    """
    data = memoryview(os.urandom(load.size))
    count = max(1, load.count // 4 // load.associations)

    def write(number: int) -> None:
        here = folder / f"{number}"
        here.mkdir(parents=True)
        held = HeldFolder(here)
        for at in range(count):
            file = IncomingFile(held, here)
            for piece in range(0, load.size, RECEIVE_BYTES):
                file.write(data[piece : piece + RECEIVE_BYTES])
            file.sync()
            file.publish(ArrivalId(1_700_000_000.0, f"{number:012x}", at + 1, 1))

    with ThreadPoolExecutor(load.associations) as pool:
        began = time.perf_counter()
        list(pool.map(write, range(load.associations)))
        rate = count * load.associations / (time.perf_counter() - began)
    put_to_rest(folder)
    return rate


def machine() -> str:
    """Return a description of the machine and the software."""
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.machine(),
    )  # fmt: skip
    versions = [f"Python {platform.python_version()}", f"pynetdicom {version('pynetdicom')}"]
    for command in (["storescp", "--version"], ["Orthanc", "--version"]):
        if shutil.which(command[0]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            first = (done.stdout or done.stderr).splitlines()[0]
            versions.append(first.removeprefix("$dcmtk: ").rstrip("$ ").strip())
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores ({model}), Linux {platform.release()}; " + ", ".join(versions)


def rounded(rate: float) -> str:
    """Return a rate with the digits that count."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}"


def report(
    load: Load,
    measurements: dict[str, list[Measurement]],
    syncs: dict[str, str],
    *,
    most: float,
    disk: float,
    sync: float,
) -> None:
    """Print one table."""
    plural = "s" if load.associations > 1 else ""
    print(f"\n### {load.name}, {load.associations} association{plural}\n")
    print(f"The sender alone: {most:,.0f} instances/s.  The disk alone, files written and synced:")
    print(
        f"{disk:,.0f}/s, {disk * load.size / 1e6:,.0f} MB/s; fdatasync of 4 KiB: {sync:.2f} ms.\n"
    )
    columns = ["receiver", "synced before Success", "instances/s", "MB/s", "CPU ms", "memory MB"]
    print("|", " | ".join([*columns, "p50 ms", "p99 ms"]), "|")
    print("|---" * 8 + "|")
    for name, runs in measurements.items():
        middle = [
            statistics.median(getattr(run, field) for run in runs)
            for field in ("rate", "megabytes", "cpu", "memory", "p50", "p99")
        ]
        rate, megabytes, cpu, memory, p50, p99 = middle
        print(
            f"| {name} | {syncs[name]} | {rounded(rate)} | {megabytes:,.0f} | {cpu:.2f} "
            f"| {memory:.0f} | {p50:.2f} | {p99:.2f} |"
        )
    sys.stdout.flush()


def main() -> None:
    """Measure everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny loads, one round: does it work?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where all receivers write; a scratch folder")
    parser.add_argument("--only", default="", help="receivers whose name contains this")
    parser.add_argument(
        "--load", default="", help="loads whose name contains this; also: sending, stages"
    )
    options = parser.parse_args()
    rounds = 1 if options.smoke else options.rounds
    receivers = [one for one in RECEIVERS if one.here() and options.only in one.name]
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-") as name:
        folder = Path(name)
        spread_subdirectories(folder)  # as the adapter does with its own
        sender = folder / "sender"
        compiler = ["cc", "-O2", "-pthread", "-D_GNU_SOURCE", str(HERE / "sender.c")]
        subprocess.run([*compiler, "-o", str(sender)], check=True)
        print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine()}.")
        for number, load in enumerate(loads(smoke=options.smoke)):
            if options.load not in load.name:
                continue
            file = folder / f"{load.size}.dcm"
            if not file.exists():
                make_file(file, load.size)
            measurements: dict[str, list[Measurement]] = {one.name: [] for one in receivers}
            alone = send(sender, 0, load, load.count, file, "discard")
            disk = [disk_rate(folder / f"{number}-{turn}-disk", load) for turn in range(rounds)]
            for turn in range(rounds):
                for place in range(len(receivers)):
                    # Each turn begins with another receiver: the first place may be special.
                    receiver = receivers[(turn + place) % len(receivers)]
                    here = folder / f"{number}-{turn}-{place}"
                    measurements[receiver.name].append(measure(receiver, load, sender, file, here))
            syncs = {one.name: one.syncs for one in receivers}
            report(
                load,
                measurements,
                syncs,
                most=alone[0] / alone[1],
                disk=statistics.median(disk),
                sync=sync_milliseconds(folder),
            )
        measure_others(options.load, folder, sender, rounds, smoke=options.smoke)


def measure_others(wanted: str, folder: Path, sender: Path, rounds: int, *, smoke: bool) -> None:
    """Measure our sender, and our receiver while the other stages run."""
    ct = loads(smoke=smoke)[1]
    if wanted in "sending" and sending.here():
        sending.report(folder, size=ct.size, count=12 if smoke else 500, rounds=rounds)
    if wanted in "stages":
        file = folder / "stages.dcm"
        make_file(file, ct.size)

        def burst(port: int) -> float:
            # Long enough that the stages are at work during the burst.
            count = ct.count if smoke else ct.count * 5
            instances, seconds, *_ = send(sender, port, ct, count, file)
            return instances / seconds

        receiver_under_load.report(folder, burst, rounds=rounds)


if __name__ == "__main__":
    main()
