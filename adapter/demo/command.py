# SPDX-License-Identifier: Apache-2.0
"""The demo: runs all stages once on real DICOM files, and starts everything that it needs.

It succeeds only if every file was stored, every group got its job, every job succeeded, every
result arrived bit for bit, and spool and ledger account for each other.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pydicom

from adapter.core import Adapter, open_adapter
from adapter.demo import proof, scene
from adapter.demo.display import live_display, plain_display
from adapter.demo.progress import DemoProgress, Line, look
from adapter.demo.scene import Scene
from adapter.embedded.supervisor import Supervisor
from adapter.errors import AdapterError
from adapter.models import ExportState, JobState, Outcome
from adapter.scu.files import Found, find_files
from adapter.scu.sender import send
from adapter.scu.store import StoreResult
from adapter.terminal import console, print_table, say
from adapter.timeline import HEADINGS, count, export_line, job_line, timeline_lines
from adapter.verify import verify

#: A small real CT study of two series, from pydicom's wheel.
DEFAULT_STUDY = Path(pydicom.__file__).parent / "data/test_files/dicomdirtests/98892001"

_START_SECONDS = 60.0
#: Seconds without any change after which the demo gives up; the lease of a dead worker is shorter.
_STALL_SECONDS = 60.0
_LOOK_SECONDS = 0.25


@dataclass
class Sending:
    """How many files the adapter has stored and refused so far."""

    total: int
    stored: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def settle(self, result: StoreResult) -> None:
        """Count a file that was answered or given up."""
        if result.outcome is Outcome.STORED:
            self.stored += 1
        else:
            self.failures[result.reason or ""] += 1

    @property
    def line(self) -> Line:
        """The progress of sending, for the display."""
        failed = sum(self.failures.values())
        text = f"{self.stored} of {count(self.total, 'instance')} acknowledged"
        return Line("received", f"{text}, {failed} refused" if failed else text)


def run(study: Path | None, *, keep: bool) -> None:
    """Run the demo.

    Parameters
    ----------
    study : Path, optional
        A folder (or file) of the user, with one or more studies.
    keep : bool
        Whether the scratch folder is kept.

    Raises
    ------
    AdapterError
        If anything failed.
    """
    begin = time.monotonic()
    found = _find(study)
    folder = Path(tempfile.mkdtemp(prefix="dicom-adapter-demo-"))
    try:
        problems = _play(scene.build(folder), found)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    if keep:
        say(f"Kept, with copies of the images: {folder}")
    _conclude(problems, begin)


def visit(stage: Scene, study: Path | None, *, stall_seconds: float) -> None:
    """Run the demo against an adapter that runs already.

    Parameters
    ----------
    study : Path, optional
        A folder (or file) of the user, with one or more studies.
    stall_seconds : float, seconds
        Time without any progress after which the demo gives up.

    Raises
    ------
    AdapterError
        If anything failed.
    """
    begin = time.monotonic()
    found = _find(study)
    adapter = open_adapter(stage.settings)
    try:
        problems = _send_and_watch(stage, adapter, found, stall_seconds)
    finally:
        adapter.close()
    _conclude(problems, begin)


def _find(study: Path | None) -> Found:
    found = find_files([study or DEFAULT_STUDY])
    if not found.files:
        skipped = f" (skipped: {_counts(found)})" if found.skipped or found.unfit else ""
        raise AdapterError(f"there is no DICOM file to send in {study}{skipped}")
    return found


def _conclude(problems: list[str], begin: float) -> None:
    if problems:
        raise AdapterError("the demo failed:\n  " + "\n  ".join(problems))
    say(f"The demo has passed, in {time.monotonic() - begin:.0f} s.")


def _play(stage: Scene, found: Found) -> list[str]:
    """Start everything, send, watch, and return the failures."""
    settings = stage.settings
    say(f"Starting everything in {settings.data.parent} ...")
    say(
        f"  the disk may fill up to {scene.WATERMARK_PERCENT:.0f} %, less {scene.RESERVE_GB} GB, "
        "for this demo (by default 85 %, less 5 GB)"
    )
    with Supervisor(
        settings, extra=[stage.pacs_role], print_line=lambda line: say(f"  {line}")
    ) as supervisor:
        begin = time.monotonic()
        if not supervisor.wait_ready(_START_SECONDS):
            missing = supervisor.missing()
            tails = [
                f"{name}: {line}" for name in missing for line in supervisor.log_of(name).tail()
            ]
            return [f"not ready after {_START_SECONDS:.0f} s: {', '.join(missing)}", *tails]
        say(f"  ready after {time.monotonic() - begin:.1f} s: {', '.join(supervisor.pids)}")
        adapter = open_adapter(settings)
        try:
            return _send_and_watch(stage, adapter, found, _STALL_SECONDS)
        finally:
            adapter.close()
            say("Stopping ...")


def _send_and_watch(
    stage: Scene, adapter: Adapter, found: Found, stall_seconds: float
) -> list[str]:
    if adapter.spool.space(adapter.settings.storage).low:
        return [f"the disk of {stage.settings.data} is full"]
    stage.register(adapter)
    say(
        f"Registered AE title {scene.AE_TITLE} (groups close after {scene.TIMEOUT} s of quiet), "
        f"source {scene.MODALITY}, destination {scene.DESTINATION}"
    )
    say(
        f"Sending {count(len(found.files), 'file')} to {scene.AE_TITLE}"
        + (f" (skipped: {_counts(found)})" if found.skipped or found.unfit else "")
    )
    sending = Sending(len(found.files))
    before = look(adapter)
    received = proof.digests(stage.received)
    with ThreadPoolExecutor(1, thread_name_prefix="modality") as pool:
        sent = pool.submit(
            send, found.files, stage.adapter, stage.modality, sending.settle, insist=True
        )
        progress, over = _watch(adapter, sending, sent, before, stall_seconds)
        sent.result()
    _print_timelines(progress)
    problems = [f"{count(number, 'file')}: {why}" for why, number in sending.failures.items()]
    if not over:
        lines = "; ".join(f"{line.name}: {line.text}" for line in progress.lines())
        problems.append(f"no progress for {stall_seconds:.0f} s: {lines}")
    if quarantined := progress.quarantined - before.quarantined:
        problems.append(f"{count(quarantined, 'file')} went to quarantine")
    arrived = proof.digests(stage.received)
    new = {uid: digest for uid, digest in arrived.items() if received.get(uid) != digest}
    return problems + _judge(adapter, progress, new)


def _counts(found: Found) -> str:
    """Return how many files were skipped, and why."""
    skipped = found.skipped + found.unfit
    return ", ".join(f"{number} {reason}" for reason, number in skipped.items())


def _watch(
    adapter: Adapter,
    sending: Sending,
    sent: Future[None],
    before: DemoProgress,
    stall_seconds: float,
) -> tuple[DemoProgress, bool]:
    """Show the progress until everything is finished, or nothing has happened for too long.

    Returns
    -------
    tuple of DemoProgress and bool
        The last progress, and whether everything is finished.
    """
    changed, lines_before = time.monotonic(), [sending.line]
    with live_display() if console.is_terminal else plain_display() as show:
        while True:
            over = sent.done()  # before reading the ledger, which then has all that was stored
            progress = look(adapter, before.now)
            lines = [sending.line, *progress.lines()]
            show(lines)
            if any(job.working for job in progress.jobs) or lines != lines_before:
                changed, lines_before = time.monotonic(), lines
            over = over and progress.is_over(before.accounted + sending.stored)
            if over or time.monotonic() - changed > stall_seconds:
                return progress, over
            time.sleep(_LOOK_SECONDS)


def _print_timelines(progress: DemoProgress) -> None:
    for timeline in progress.timelines:
        say(f"Timeline of study {timeline.study_instance_uid}")
        print_table(HEADINGS, timeline_lines(timeline), "nothing happened")


def _judge(adapter: Adapter, progress: DemoProgress, arrived: Mapping[str, str]) -> list[str]:
    """Return every failure of groups, jobs, exports and results."""
    problems = []
    if len(progress.jobs) != len(progress.groups) or not progress.jobs:
        problems.append(f"{len(progress.groups)} groups have {len(progress.jobs)} jobs")
    for job in progress.jobs:
        if job.state != JobState.SUCCEEDED:
            problems += [job_line(job), *_last_words(adapter.spool.work_folder(job.id))]
    problems += [
        export_line(export) for export in progress.exports if export.state != ExportState.SUCCEEDED
    ]
    written = proof.published(adapter.ledger, [job.id for job in progress.jobs])
    same, differences = proof.compare(written, arrived)
    problems += differences
    if not same:
        problems.append("no result arrived at the PACS")
    elif not differences:
        say(f"What arrived is what the pipeline wrote, bit for bit: {count(same, 'file')}")
    unaccounted = verify(adapter, deep=True)
    problems += [f"verify: {item.kind} {item.id}: {item.problem}" for item in unaccounted]
    if not unaccounted:
        say("Spool and ledger account for each other.")
    return problems


def _last_words(work: Path) -> list[str]:
    """Return the last lines that a failed pipeline wrote to standard error."""
    try:
        lines = (work / "stderr.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [f"  it wrote: {line}" for line in lines[-3:]]
