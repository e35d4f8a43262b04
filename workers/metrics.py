# SPDX-License-Identifier: Apache-2.0
"""A worker's metrics for Prometheus: what its runs did, and how long they took."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import Counter, Histogram, disable_created_metrics
from prometheus_client.registry import CollectorRegistry

from adapter.ledger.attempts import REASONS
from adapter.models import ArrivalState, ExportState, JobState
from adapter.stages import EXPORT, GROUPING, NOTIFICATION, PIPELINE, RECLAMATION, STAGES, SUBMISSION

# They would double the series, for a time that nobody asks about.
disable_created_metrics()

OTHER = "other"

#: What a stage's run may say that it did; another word counts as `OTHER`.
OUTCOMES: dict[str, tuple[str, ...]] = {
    NOTIFICATION: tuple(ArrivalState),
    GROUPING: ("closed", "jobs", "waits", "failed", "parked", "patient-conflict", "lost"),
    SUBMISSION: (
        JobState.STARTED,
        JobState.HANDED_OVER,
        JobState.PARKED,
        "failed",
        "waits",
        "lost",
        "asked",
        "succeeded",
        "run-failed",
        "unreachable",
        "cancelled",
        "not-cancelled",
    ),
    PIPELINE: (
        "succeeded",
        "exit-code",
        "timed-out",
        "killed",
        "failed",
        "could-not-start",
        "not-isolated",
        "over-limit",
        "disk-full",
        "no-output",
        "invalid-output",
        "not-visible",
        "kills-its-worker",
        "parked",
        "waits",
        "lost",
    ),
    EXPORT: (*ExportState, "reported", "unreported", "lost"),
    RECLAMATION: (
        "retried",
        "quarantined",
        "discarded",
        "groups",
        "failed",
        "stuck",
        "stale",
        "outputs",
        "forgotten",
        "lost",
    ),
}
#: Upper bounds of the buckets of a run's time (seconds).
BOUNDS = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600)


class WorkerMetrics:
    """What one worker counts.

    Attributes
    ----------
    registry : CollectorRegistry
        The metrics.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._work = Counter(
            "dicom_adapter_work",
            "What the worker did, by stage and outcome.",
            ["stage", "outcome"],
            registry=self.registry,
        )
        self._runs = Histogram(
            "dicom_adapter_run_seconds",
            "Seconds that a task took, whether there was work or not.",
            ["stage"],
            buckets=BOUNDS,
            registry=self.registry,
        )
        self._cut_short = Counter(
            "dicom_adapter_runs_cut_short",
            "Runs that ended because the ledger was away or a lease was lost.",
            ["stage"],
            registry=self.registry,
        )

        self._defeated = Counter(
            "dicom_adapter_defeated",
            "Attempts on a row that an error nobody foresaw, or the worker's death, has ended.",
            ["stage", "reason"],
            registry=self.registry,
        )

    def serve(self, stages: list[str]) -> None:
        """Tell of these stages from now on: a counter begins at zero, not with its first event."""
        for stage in stages:
            self._runs.labels(stage)
            self._cut_short.labels(stage)
            for reason in REASONS:
                self._defeated.labels(stage, reason)
            for outcome in (*OUTCOMES[stage], OTHER):
                self._work.labels(stage, outcome)

    def ran(self, stage: str, seconds: float, done: Mapping[str, int] | None) -> None:
        """Count a run.

        Parameters
        ----------
        stage : str
            Whose.
        seconds : float
            How long it took.
        done : mapping of str to int, or None
            What it did; None if it was cut short.
        """
        self._runs.labels(stage).observe(seconds)
        if done is None:
            self._cut_short.labels(stage).inc()
        for outcome, amount in (done or {}).items():
            known = outcome if outcome in OUTCOMES[stage] else OTHER
            self._work.labels(stage, known).inc(amount)

    def defeated(self, stage: str, reason: str) -> None:
        """Count an attempt that a row has defeated, for one of `attempts.REASONS`."""
        self._defeated.labels(stage, reason).inc()


assert list(OUTCOMES) == list(STAGES), "each stage says what it does"
