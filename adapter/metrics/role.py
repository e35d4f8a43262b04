# SPDX-License-Identifier: Apache-2.0
"""What every role tells alike: which release it is, and how long its heart has been silent."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from adapter import __version__
from adapter.heartbeat import DEAD_SECONDS, Heart
from adapter.metrics.endpoint import Endpoint, Reasons, listen
from adapter.settings import Settings


class RoleCollector(Collector):
    """The metrics of every role.

    Parameters
    ----------
    role : str
        Which it is.
    silence : callable
        Returns the seconds since its heart beat last.
    """

    def __init__(self, role: str, silence: Callable[[], float]) -> None:
        self._role = role
        self._silence = silence

    def collect(self) -> Iterator[Metric]:
        """Return the metrics, now."""
        release = GaugeMetricFamily(
            "dicom_adapter_info", "The release that runs; always 1.", labels=["role", "version"]
        )
        release.add_metric([self._role, __version__], 1)
        yield release
        silence = GaugeMetricFamily(
            "dicom_adapter_heartbeat_age_seconds",
            "Seconds since the role's heart beat last.",
            labels=["role"],
        )
        silence.add_metric([self._role], self._silence())
        yield silence


def serve_role(
    settings: Settings,
    role: str,
    heart: Heart,
    unready: Reasons,
    registry: CollectorRegistry | None = None,
) -> Endpoint | None:
    """Serve a role's metrics and probes from a thread of this process, if the settings say so.

    Parameters
    ----------
    settings : Settings
        Say where to listen, if at all.
    role : str
        The role's name.
    heart : Heart
        Its heart: while it beats the role is live.
    unready : callable
        Returns why the role does not do its work; empty if it does.
    registry : CollectorRegistry, optional
        Further metrics of the role; collecting them must not wait for anything.

    Returns
    -------
    Endpoint or None
        To be stopped at the end; None if no port is set.

    Raises
    ------
    ConfigurationError
        If the address cannot be listened on.
    """
    listener = listen(settings.metrics)
    if listener is None:
        return None
    registry = registry or CollectorRegistry()
    registry.register(RoleCollector(role, lambda: heart.age))
    endpoint = Endpoint(listener, registry, lambda: silent(heart.age), unready)
    endpoint.start()
    return endpoint


def silent(age: float) -> list[str]:
    """Return what is wrong with a heart that beat last `age` seconds ago, if anything."""
    if age <= DEAD_SECONDS:
        return []
    return [f"no heartbeat for {age:.0f} s"]
