# SPDX-License-Identifier: Apache-2.0
"""The chart, rendered by the real Helm engine, and what its objects are to each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

CHART = Path(__file__).parents[1] / "helm"
NAMESPACE = "imaging"
RELEASE = "pacs-ai"

#: Values that the chart is rendered with, by name: each a file in helm/ci.
CASES = {path.stem: path for path in sorted((CHART / "ci").glob("*.yaml"))}

STAGES = ("notification", "grouping", "submission", "pipeline", "export", "reclamation")

Object = dict[str, Any]


@dataclass(frozen=True)
class Pod:
    """A pod as some object describes it."""

    owner: Object
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: Object

    @property
    def component(self) -> str:
        return self.labels.get("app.kubernetes.io/component", "")

    @property
    def containers(self) -> list[Object]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def main(self) -> Object:
        return self.spec["containers"][0]

    @property
    def environment(self) -> dict[str, str]:
        return {item["name"]: item["value"] for item in self.main.get("env", [])}


@dataclass(frozen=True)
class Rendered:
    """What Helm makes of the chart and some values."""

    objects: list[Object]
    notes: str

    def of(self, kind: str) -> list[Object]:
        return [item for item in self.objects if item["kind"] == kind]

    def find(self, kind: str, end: str) -> Object:
        """Return the one object of a kind whose name ends so."""
        (found,) = [item for item in self.of(kind) if item["metadata"]["name"].endswith(end)]
        return found

    def pods(self) -> Iterator[Pod]:
        for item in self.objects:
            if item["kind"] in {"Deployment", "StatefulSet", "Job"}:
                template = item["spec"]["template"]
            elif item["kind"] == "Pod":
                template = item
            else:
                continue
            metadata = template["metadata"]
            yield Pod(item, metadata["labels"], metadata.get("annotations") or {}, template["spec"])

    def pod(self, component: str) -> Pod:
        (found,) = [pod for pod in self.pods() if pod.component == component]
        return found

    def created_passwords(self) -> dict[str, list[str]]:
        """Return the Secrets that a job of the release creates, and their keys."""
        jobs = [pod.main["args"] for pod in self.pods() if pod.component == "passwords"]
        for command, *_ in jobs:
            assert command == "create-passwords"
        return {secret: keys for _, secret, *keys in jobs}

    def replicas(self, component: str) -> int | None:
        """Return the replicas that a Deployment asks for; None if something else owns them."""
        replicas: int | None = self.pod(component).owner["spec"].get("replicas")
        return replicas


@cache
def chart() -> Chart:
    return Chart.load(str(CHART))


def values_of(case: str) -> dict[str, Any]:
    return yaml.safe_load(CASES[case].read_text(encoding="utf-8")) or {}


def render(
    values: dict[str, Any] | None = None,
    *,
    release: str = RELEASE,
    namespace: str = NAMESPACE,
    **how: Any,
) -> Rendered:
    files = chart().render(values or {}, name=release, namespace=namespace, **how)
    notes = next(text for path, text in files.items() if path.endswith("NOTES.txt"))
    texts = [text for path, text in files.items() if not path.endswith("NOTES.txt")]
    return Rendered([item for text in texts for item in parse(text)], notes)


@cache
def case(name: str) -> Rendered:
    """Return a rendered case; it is shared, so tests must not change it."""
    return render(values_of(name))


def parse(text: str) -> list[Object]:
    return [item for item in yaml.load_all(text, Loader=_Strict) if item is not None]


class _Strict(yaml.CSafeLoader):
    """Refuses a key that is there twice, as a strict reader does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key is there twice: {keys}"
        return super().construct_mapping(node, deep)


def selects(selector: Object, labels: dict[str, str]) -> bool:
    """Return whether a label selector selects what has these labels."""
    wanted = selector.get("matchLabels", {})
    for item in selector.get("matchExpressions", []):
        assert item["operator"] == "In"
        if labels.get(item["key"]) not in item["values"]:
            return False
    return all(labels.get(key) == value for key, value in wanted.items())
