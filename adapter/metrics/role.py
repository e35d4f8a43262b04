# SPDX-License-Identifier: Apache-2.0
"""What every role shows: its release, its heartbeat, and its background loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from adapter import __version__, background
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
        Returns the seconds since the last heartbeat.
    failures : callable, optional
        Returns how many runs of each background loop have failed; by default of this process.
    """

    def __init__(
        self,
        role: str,
        silence: Callable[[], float],
        failures: Callable[[], Mapping[str, int]] = background.failures,
    ) -> None:
        self._role = role
        self._silence = silence
        self._failures = failures

    def collect(self) -> Iterator[Metric]:
        """Return the metrics, now."""
        release = GaugeMetricFamily(
            "dicom_adapter_info", "The release that runs; always 1.", labels=["role", "version"]
        )
        release.add_metric([self._role, __version__], 1)
        yield release
        silence = GaugeMetricFamily(
            "dicom_adapter_heartbeat_age_seconds",
            "Seconds since the role's last heartbeat.",
            labels=["role"],
        )
        silence.add_metric([self._role], self._silence())
        yield silence
        failures = CounterMetricFamily(
            "dicom_adapter_loop_failures",
            "Runs of the role's background loops that ended in an error.",
            labels=["role", "loop"],
        )
        for loop, count in sorted(self._failures().items()):
            failures.add_metric([self._role, loop], count)
        yield failures


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
        Writes its heartbeat; while that beats the role may be live.
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
    endpoint = Endpoint(
        listener,
        registry,
        lambda: silent(heart.age) + unrecovered(background.lost()),
        unready,
        settings.metrics.host_names,
    )
    endpoint.start()
    return endpoint


def silent(age: float) -> list[str]:
    """Return why a process whose last heartbeat is `age` seconds old has to be replaced."""
    return [f"no heartbeat for {age:.0f} s"] if age > DEAD_SECONDS else []


def unrecovered(loops: Sequence[str]) -> list[str]:
    """Return why a process whose background loops are lost has to be replaced."""
    return [f"the background loop {name} does not recover" for name in loops]
