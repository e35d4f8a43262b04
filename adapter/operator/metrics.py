# SPDX-License-Identifier: Apache-2.0
"""The operator's metrics: custom resources that are in force or not, and whether it can work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class OperatorCollector(Collector):
    """The operator's own metrics; collecting them waits for nothing.

    Parameters
    ----------
    amounts : callable
        Returns, by name of a kind, how many of its resources are in force and how many are not.
    problem : callable
        Returns the reasons why the operator cannot work; an empty list if it can.
    """

    def __init__(
        self,
        amounts: Callable[[], Mapping[str, tuple[int, int]]],
        problem: Callable[[], list[str]],
    ) -> None:
        self._amounts = amounts
        self._problem = problem

    def collect(self) -> Iterator[Metric]:
        """Return the metrics, now."""
        resources = GaugeMetricFamily(
            "dicom_adapter_custom_resources",
            "Custom resources, by kind and by whether they are in force.",
            labels=["kind", "ready"],
        )
        for kind, (ready, unready) in self._amounts().items():
            resources.add_metric([kind, "true"], ready)
            resources.add_metric([kind, "false"], unready)
        yield resources
        yield GaugeMetricFamily(
            "dicom_adapter_operator_trouble",
            "1 if a problem of the API server or the ledger stops the operator's work.",
            value=1 if self._problem() else 0,
        )
