# SPDX-License-Identifier: Apache-2.0
"""Measures what the other stages costs the receiver, and how soon it has caught up.

The stages beside the receiver are those that touch every instance: notification, grouping and
reclamation, in a worker of lower CPU priority, as ``dicom-adapter up`` starts it.
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


def _await(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait for something, and return how many seconds it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() > began + seconds:
            raise RuntimeError(f"{what} took too long")
        time.sleep(0.05)
    return time.monotonic() - began


def measure(
    folder: Path, send: Callable[[int], float], *, beside: bool
) -> tuple[float, int, float]:
    """Send to a receiver, alone or with the other stages at work.

    Parameters
    ----------
    folder : Path
        Where everything is; made here.
    send : callable
        Sends a burst to a port, and returns the instances each second.

    Returns
    -------
    tuple of float, int and float
        Instances each second; how many waited at the end; seconds until none did.
    """
    folder.mkdir()
    port = free_port()
    settings = {"broker": {"port": free_port()}}
    with ExitStack() as stack:
        receiver = stack.enter_context(
            _running(Ours("", "", settings=settings).start(folder, port, 4))
        )
        if beside:
            _start_road(stack, folder)
        await_listening(port, receiver)
        spool = Spool(folder / "data" / "spool")
        send(port)  # so that everybody is awake
        _await(lambda: not beside or not any(spool.list_incoming()), _TIMEOUT_SECONDS, "waking up")
        rate = send(port)
        if not beside:
            return rate, 0, 0.0
        waiting = sum(1 for _ in spool.list_incoming())
        drained = _await(lambda: not any(spool.list_incoming()), _TIMEOUT_SECONDS, "the backlog")
        return rate, waiting, drained


def _start_road(stack: ExitStack, folder: Path) -> None:
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
    """Measure in turn alone and beside the other stages, and print what came of it."""
    alone, together = [], []
    for turn in range(rounds):
        alone.append(measure(folder / f"alone-{turn}", send, beside=False)[0])
        together.append(measure(folder / f"loaded-{turn}", send, beside=True))
    rates = statistics.median(rate for rate, _, _ in together)
    print("\n### With the other stages beside it, CT, 4 associations, synced\n")
    print("| | instances/s |\n|---|---|")
    print(f"| the receiver alone | {statistics.median(alone):,.0f} |")
    print(f"| beside notification, grouping and reclamation | {rates:,.0f} |\n")
    waiting = statistics.median(count for _, count, _ in together)
    drained = statistics.median(seconds for _, _, seconds in together)
    print(
        f"At the end of the burst {waiting:,.0f} instances waited; {drained:.1f} s later none did."
    )
    sys.stdout.flush()
