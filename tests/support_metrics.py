# SPDX-License-Identifier: Apache-2.0
"""What tests of metrics read them with."""

from __future__ import annotations

import http.client
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Scrape:
    """What one scrape brought."""

    families: tuple[Metric, ...]

    @classmethod
    def parse(cls, text: str) -> Scrape:
        return cls(tuple(text_string_to_metric_families(text)))

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of a sample; None if it is not there."""
        found = [s.value for s in self.samples() if s.name == name and s.labels == labels]
        assert len(found) < 2, "a sample comes twice"
        return found[0] if found else None

    def samples(self) -> Iterable:
        return (sample for family in self.families for sample in family.samples)

    def names(self) -> set[str]:
        return {sample.name for sample in self.samples()}

    def labels(self, name: str, label: str) -> set[str]:
        """Return the values of a label."""
        return {s.labels[label] for s in self.samples() if s.name == name}


def ask(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    """Ask a role's endpoint on loopback; return status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def scrape(port: int) -> Scrape:
    """Scrape a role's endpoint on loopback."""
    status, text = ask(port, "/metrics")
    assert status == 200
    return Scrape.parse(text)
