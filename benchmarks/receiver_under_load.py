# SPDX-License-Identifier: Apache-2.0
"""Measures how much the other stages slow down the receiver, and how soon they catch up.

The other stages are those that process every instance: notification, grouping and reclamation, in a
worker of lower CPU priority, as ``dicom-adapter up`` starts it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from adapter.embedded import broker
from adapter.embedded.roles import BACKGROUND
from adapter.settings import load as load_settings
from adapter.spool import Spool
from benchmarks.receivers import Ours, await_listening, free_port

STAGES = ("notification", "grouping", "reclamation")
#: Seconds that the stages get to catch up.
_TIMEOUT_SECONDS = 300.0


@contextmanager
def _running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(check: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait until a check is true, and return how many seconds it took."""
    began = time.monotonic()
    while not check():
        if time.monotonic() > began + seconds:
            raise RuntimeError(f"{what} took too long")
        time.sleep(0.05)
    return time.monotonic() - began


def measure(
    folder: Path, send: Callable[[int], float], *, loaded: bool
) -> tuple[float, int, float]:
    """Send to a receiver, alone or with the other stages at work.

    Parameters
    ----------
    folder : Path
        The folder of the adapter; created here.
    send : callable
        Sends a burst to a port, and returns the instances per second.

    Returns
    -------
    tuple of float, int and float
        Instances per second; number that waited at the end; seconds until none did.
    """
    folder.mkdir()
    port = free_port()
    settings = {"broker": {"port": free_port()}}
    with ExitStack() as stack:
        receiver = stack.enter_context(
            _running(Ours("", "", settings=settings).start(folder, port, 4))
        )
        if loaded:
            _start_stages(stack, folder)
        await_listening(port, receiver)
        spool = Spool(folder / "data" / "spool")
        send(port)  # so all processes are warmed up
        _await(lambda: not loaded or not any(spool.list_incoming()), _TIMEOUT_SECONDS, "waking up")
        rate = send(port)
        if not loaded:
            return rate, 0, 0.0
        waiting = sum(1 for _ in spool.list_incoming())
        drained = _await(lambda: not any(spool.list_incoming()), _TIMEOUT_SECONDS, "the backlog")
        return rate, waiting, drained


def _start_stages(stack: ExitStack, folder: Path) -> None:
    adapter = load_settings(config=folder / "appsettings.json")
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    redis = [str(broker.find_server()), str(broker.prepare(adapter))]
    stack.enter_context(_running(subprocess.Popen(redis, **quiet)))
    _await(lambda: broker.is_ready(adapter), 20, "Redis")
    program = str(Path(sys.executable).with_name("dicom-adapter"))
    config = str(folder / "appsettings.json")
    worker = ["nice", "-n", str(BACKGROUND), program, "--config", config, "worker", *STAGES]
    stack.enter_context(_running(subprocess.Popen(worker, **quiet)))


def report(folder: Path, send: Callable[[int], float], *, rounds: int) -> None:
    """Measure in turn without and with the other stages, and print the results."""
    alone, together = [], []
    for turn in range(rounds):
        alone.append(measure(folder / f"alone-{turn}", send, loaded=False)[0])
        together.append(measure(folder / f"loaded-{turn}", send, loaded=True))
    rates = statistics.median(rate for rate, _, _ in together)
    print("\n### With the other stages running, CT, 4 associations, synced\n")
    print("| | instances/s |\n|---|---|")
    print(f"| the receiver alone | {statistics.median(alone):,.0f} |")
    print(f"| with notification, grouping and reclamation | {rates:,.0f} |\n")
    waiting = statistics.median(count for _, count, _ in together)
    drained = statistics.median(seconds for _, _, seconds in together)
    print(
        f"At the end of the burst {waiting:,.0f} instances waited; {drained:.1f} s later none did."
    )
    sys.stdout.flush()
