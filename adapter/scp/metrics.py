# SPDX-License-Identifier: Apache-2.0
"""The SCP's metrics for Prometheus: counted where things happen, shown by any process.

Labels are bounded.  AE titles are those that associations were accepted for, so they are
configured ones; each beyond the first `MOST_TITLES` counts as "other".  All other labels come from
the sets below.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from adapter.dicom.statuses import ANSWERED, SUCCESS
from adapter.scp.acceptance import CAUSES
from adapter.scp.shared_counters import Key, ProcessCounters, SharedCounters

#: AE titles that are told apart.
MOST_TITLES = 200
OTHER = "other"

#: The statuses that a C-STORE is answered with (see `adapter.scp.store` and `adapter.scp.dimse`).
STATUSES = tuple(f"{status:04X}" for status in ANSWERED)
#: Why associations are rejected (see `adapter.scp.acceptance`).
REJECTIONS = (*CAUSES, OTHER)
#: The background loops of a process that receives.
LOOPS = ("heartbeat", "scp-ledger", "scp-listener", "scp-wake-up")
#: How associations end.
ENDINGS = ("released", "aborted", "lost")
#: Upper bounds of the buckets of a C-STORE's time (seconds).
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

# Names of counters.
_INSTANCES, _BYTES, _IGNORED = "instances", "bytes", "ignored"
_ACCEPTED, _REJECTED, _ENDED = "accepted", "rejected", "ended"
_DROPPED: Key = ("dropped",)
_LOOP_FAILURES = "loop-failures"
_BUCKETS: tuple[Key, ...] = tuple(("bucket", str(number)) for number in range(len(BOUNDS) + 1))
_NANOSECONDS: Key = ("nanoseconds",)


class ProcessMetrics:
    """What one process counts.

    Parameters
    ----------
    counters : ProcessCounters
        Where it counts.
    """

    def __init__(self, counters: ProcessCounters) -> None:
        self.counters = counters
        self._titles: set[str] = set()
        self._loop_failures: dict[str, int] = {}

    def accepted(self, called_ae: str) -> None:
        """Count an association that was accepted."""
        self.counters.add((_ACCEPTED, self._title(called_ae)))

    def rejected(self, cause: str) -> None:
        """Count an association that was rejected."""
        self.counters.add((_REJECTED, cause if cause in REJECTIONS else OTHER))

    def ended(self, how: str) -> None:
        """Count the end of an association."""
        self.counters.add((_ENDED, how))

    def dropped(self) -> None:
        """Count a connection that was closed because no thread could be started for it."""
        self.counters.add(_DROPPED)

    def loops_failed(self, totals: Mapping[str, int]) -> None:
        """Take over how many runs of each background loop of this process have failed so far."""
        for name, total in totals.items():
            if new := total - self._loop_failures.get(name, 0):
                self.counters.add((_LOOP_FAILURES, name), new)
            self._loop_failures[name] = total

    def answered(self, called_ae: str, status: int, stored_bytes: int | None) -> None:
        """Count a C-STORE that is answered; `stored_bytes` is None if nothing was stored."""
        title = self._title(called_ae)
        self.counters.add((_INSTANCES, title, f"{status:04X}"))
        if stored_bytes is not None:
            self.counters.add((_BYTES, title), stored_bytes)
        elif status == SUCCESS:
            self.counters.add((_IGNORED, title))

    def took(self, seconds: float) -> None:
        """Count how long a C-STORE took, from its first byte to its response."""
        self.counters.add(_BUCKETS[bisect_left(BOUNDS, seconds)])
        self.counters.add(_NANOSECONDS, int(seconds * 1e9))

    def _title(self, called_ae: str) -> str:
        if called_ae not in self._titles:
            if len(self._titles) >= MOST_TITLES:
                return OTHER
            self._titles.add(called_ae)
        return called_ae


def loop_failures(counters: SharedCounters) -> dict[str, int]:
    """Return how many runs of each background loop have failed, over all processes."""
    totals = counters.totals()
    found = {key[1]: value for key, value in totals.items() if key[0] == _LOOP_FAILURES}
    return dict.fromkeys(LOOPS, 0) | found


class ScpCollector(Collector):
    """Shows what all processes counted.

    Parameters
    ----------
    counters : SharedCounters
        Where they count.
    limit : int
        Associations that may be open at a time.
    """

    def __init__(self, counters: SharedCounters, limit: int) -> None:
        self._counters = counters
        self._limit = limit

    def collect(self) -> Iterator[Metric]:
        """Return the metrics, now."""
        totals = self._counters.totals()
        yield from self._instances(totals)
        yield self._time(totals)
        yield from self._associations(totals)
        yield CounterMetricFamily(
            "dicom_adapter_connections_dropped",
            "Connections that were closed because no thread could be started for them.",
            value=totals.get(_DROPPED, 0),
        )
        for name, text, value in (
            ("active_associations", "Associations that are open.", self._counters.active()),
            ("association_limit", "Associations that may be open at a time.", self._limit),
            ("receiving_processes", "Processes that receive.", self._counters.listening()),
            (
                "refusing_processes",
                "Processes that cannot store instances: the spool fails or is low on space.",
                self._counters.refusing(),
            ),
        ):
            yield GaugeMetricFamily(f"dicom_adapter_{name}", text, value)

    @staticmethod
    def _instances(totals: dict[Key, int]) -> Iterator[Metric]:
        titles = sorted({key[1] for key in totals if key[0] in {_ACCEPTED, _INSTANCES}})
        instances = CounterMetricFamily(
            "dicom_adapter_instances",
            "C-STORE requests that were answered, by status (hexadecimal).",
            labels=["called_ae_title", "status"],
        )
        size = CounterMetricFamily(
            "dicom_adapter_received_bytes",
            "Bytes of the data sets that were stored.",
            labels=["called_ae_title"],
        )
        ignored = CounterMetricFamily(
            "dicom_adapter_ignored_instances",
            "Instances answered with 0000 and dropped, of SOP classes that the AE title ignores.",
            labels=["called_ae_title"],
        )
        for title in titles:
            for status in STATUSES:
                instances.add_metric([title, status], totals.get((_INSTANCES, title, status), 0))
            size.add_metric([title], totals.get((_BYTES, title), 0))
            ignored.add_metric([title], totals.get((_IGNORED, title), 0))
        yield from (instances, size, ignored)

    @staticmethod
    def _time(totals: dict[Key, int]) -> Metric:
        buckets, count = [], 0
        for bound, key in zip((*map(str, BOUNDS), "+Inf"), _BUCKETS, strict=True):
            count += totals.get(key, 0)
            buckets.append((bound, float(count)))
        return HistogramMetricFamily(
            "dicom_adapter_store_seconds",
            "Seconds from the first byte of a C-STORE request to its response.",
            buckets=buckets,
            sum_value=totals.get(_NANOSECONDS, 0) / 1e9,
        )

    @staticmethod
    def _associations(totals: dict[Key, int]) -> Iterator[Metric]:
        accepted = CounterMetricFamily(
            "dicom_adapter_associations_accepted",
            "Associations that were accepted.",
            labels=["called_ae_title"],
        )
        for key, value in sorted(totals.items()):
            if key[0] == _ACCEPTED:
                accepted.add_metric([key[1]], value)
        yield accepted
        for name, text, label, kind, known in (
            ("rejected", "Associations that were rejected.", "reason", _REJECTED, REJECTIONS),
            ("ended", "Associations that have ended.", "how", _ENDED, ENDINGS),
        ):
            family = CounterMetricFamily(f"dicom_adapter_associations_{name}", text, labels=[label])
            for one in known:
                family.add_metric([one], totals.get((kind, one), 0))
            yield family
