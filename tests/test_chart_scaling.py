# SPDX-License-Identifier: Apache-2.0
"""Pools scale by the ledger's due work, and no other object then sets their replicas."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from helm_python import HelmRenderError, HelmValuesError
from prometheus_client.registry import CollectorRegistry

from adapter import settings as settings_module
from adapter import stages
from adapter.api.app import create_app
from adapter.api.opening import AdapterOpening
from adapter.ledger.engines import CONNECTIONS_OF, SPARE_CONNECTIONS
from adapter.scp.metrics import ScpCollector
from adapter.scp.shared_counters import SharedCounters
from adapter.settings import Settings
from tests.support_chart import CHART, STAGES, Rendered, case, render

KEDA = {"stageAutoscaling": {"keda": {"enabled": True}}}


def owners(rendered: Rendered, component: str) -> list[str]:
    """Return the kinds that scale a component's Deployment."""
    name = rendered.pod(component).owner["metadata"]["name"]
    return [
        item["kind"]
        for item in rendered.objects
        if item["kind"] in {"ScaledObject", "HorizontalPodAutoscaler"}
        and item["spec"]["scaleTargetRef"]["name"] == name
    ]


@pytest.mark.parametrize("name", ["default", "hospital", "declared"])
def test_replicas_have_one_owner(name: str) -> None:
    """A Deployment says its replicas, or something scales it, and never both."""
    rendered = case(name)
    for pod in rendered.pods():
        if pod.owner["kind"] == "Deployment":
            scaled = owners(rendered, pod.component)
            assert len(scaled) == (1 if rendered.replicas(pod.component) is None else 0)
    assert owners(rendered, "api") == []


def test_a_large_installation_scales_the_stages_by_keda_and_the_receiver_by_associations() -> None:
    """KEDA owns every stage but the one that opted out; the HPA owns the SCP."""
    rendered = case("hospital")
    for stage in STAGES:
        assert owners(rendered, stage) == ([] if stage == "reclamation" else ["ScaledObject"])
    assert owners(rendered, "scp") == ["HorizontalPodAutoscaler"]


def test_stages_scale_by_work_and_age_as_the_ledger_has_them() -> None:
    """Both triggers use an existing route of the API, and fields of its answer."""
    rendered = case("hospital")
    paths = create_app(AdapterOpening(settings_module.load())).openapi()
    metrics = paths["components"]["schemas"]["Scaling"]["properties"]
    for item in rendered.of("ScaledObject"):
        stage = item["metadata"]["labels"]["app.kubernetes.io/component"]
        triggers = {trigger["name"]: trigger for trigger in item["spec"]["triggers"]}
        assert set(triggers) == {"unfinished", "oldest-seconds"}
        for trigger in triggers.values():
            assert trigger["type"] == "metrics-api"
            # By Value the number of replicas would be multiplied by it.
            assert trigger["metricType"] == "AverageValue"
            metadata = trigger["metadata"]
            assert metadata["valueLocation"] in metrics
            assert metrics[metadata["valueLocation"]]["type"] in {"integer", "number"}
            path = re.fullmatch(
                r"http://pacs-ai-dicom-adapter-api\.imaging\.svc:5000(/.+)", metadata["url"]
            )
            assert path is not None
            assert path[1] == f"/scaling/{stage}"
    assert "/scaling/{stage}" in paths["paths"]


def test_scaled_objects_are_as_keda_wants_them() -> None:
    """The keys and types of KEDA's kind are checked here, strings included.

    There is no fallback: while its metrics are missing, an HPA keeps the present replicas.
    """
    known = {
        "scaleTargetRef": dict,
        "minReplicaCount": int,
        "maxReplicaCount": int,
        "pollingInterval": int,
        "cooldownPeriod": int,
        "advanced": dict,
        "triggers": list,
    }
    for item in case("hospital").of("ScaledObject"):
        assert item["apiVersion"] == "keda.sh/v1alpha1"
        spec = item["spec"]
        assert spec.keys() == known.keys()
        for key, kind in known.items():
            assert type(spec[key]) is kind, key
        assert spec["minReplicaCount"] <= spec["maxReplicaCount"]
        for trigger in spec["triggers"]:
            assert trigger.keys() == {"type", "name", "metricType", "metadata"}
            assert all(isinstance(value, str) for value in trigger["metadata"].values())
            assert trigger["metadata"].keys() == {"url", "valueLocation", "targetValue"}
        behaviour = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        assert behaviour["scaleDown"]["stabilizationWindowSeconds"] == 300


def test_what_watches_over_quiet_time_is_always_there() -> None:
    """Notification and grouping never go to zero; others may, where that is asked for."""
    least = {
        item["metadata"]["labels"]["app.kubernetes.io/component"]: item["spec"]["minReplicaCount"]
        for item in case("hospital").of("ScaledObject")
    }
    assert least["notification"] == least["grouping"] == 1
    assert least["pipeline"] == least["submission"] == 0
    for stage in ("notification", "grouping"):
        values = {"stages": {stage: {"autoscaling": {"keda": {"enabled": True, "minReplicas": 0}}}}}
        with pytest.raises(HelmRenderError, match="has to be 1 at least"):
            render(values)


def desired(item: dict[str, Any], metrics: dict[str, float]) -> int:
    """Return the replicas that KEDA asks for: the most of what its triggers ask for."""
    spec = item["spec"]
    wanted = [
        -(
            -metrics[trigger["metadata"]["valueLocation"]]
            // float(trigger["metadata"]["targetValue"])
        )
        for trigger in spec["triggers"]
    ]
    return int(min(max(*wanted, spec["minReplicaCount"]), spec["maxReplicaCount"]))


@pytest.mark.parametrize(
    ("stage", "unfinished", "oldest", "replicas"),
    [
        ("export", 0, 0, 1),
        ("export", 8, 5, 1),
        ("export", 9, 5, 2),
        ("export", 1, 121, 2),
        ("export", 500, 0, 4),
        ("export", 3, 86400, 4),
        ("notification", 400, 5, 1),  # files of one study
        ("notification", 1600, 5, 4),
        ("pipeline", 3, 5, 2),  # runs of minutes
    ],
)
def test_more_work_or_older_work_gets_more_workers(
    stage: str, unfinished: int, oldest: float, replicas: int
) -> None:
    """Each stage's target fits what it counts; the numbers stay within the bounds."""
    item = render(KEDA).find("ScaledObject", f"-{stage}")

    assert desired(item, {"unfinished": unfinished, "oldestSeconds": oldest}) == replicas


def test_a_target_for_all_stages_is_refused() -> None:
    """Files, groups, jobs and exports are not counted in one unit."""
    with pytest.raises(HelmValuesError, match="targetUnfinished"):
        render({"stageAutoscaling": {"keda": {"targetUnfinished": 20}}})


def test_the_receiver_scales_slowly_down() -> None:
    """An SCP that goes drains for two minutes, so that one goes at a time and after long quiet."""
    spec = case("hospital").find("HorizontalPodAutoscaler", "-scp")["spec"]
    (metric,) = spec["metrics"]

    assert metric["type"] == "Pods"
    assert metric["pods"]["metric"]["name"] == "dicom_adapter_active_associations"
    assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "10"}
    down = spec["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] >= 600
    (policy,) = down["policies"]
    assert (policy["type"], policy["value"]) == ("Pods", 1)
    assert policy["periodSeconds"] >= 120


def test_the_receivers_metric_is_one_that_it_has() -> None:
    """The name that the HPA asks for is a name that the SCP serves."""
    registry = CollectorRegistry()
    registry.register(ScpCollector(SharedCounters(1), 25))
    (metric,) = case("hospital").find("HorizontalPodAutoscaler", "-scp")["spec"]["metrics"]

    assert registry.get_sample_value(metric["pods"]["metric"]["name"]) == 0


def test_monitors_scrape_ports_that_are_there() -> None:
    """PodMonitor and ServiceMonitor select every role once, at the port that serves its metrics."""
    rendered = case("hospital")
    (pods,) = rendered.of("PodMonitor")
    (services,) = rendered.of("ServiceMonitor")
    scraped = pods["spec"]["selector"]["matchExpressions"][0]["values"]
    assert set(scraped) == {"scp", *STAGES, "operator"}
    (endpoint,) = pods["spec"]["podMetricsEndpoints"]
    for component in scraped:
        ports = {port["name"] for port in rendered.pod(component).main["ports"]}
        assert endpoint["port"] in ports
    asked = services["spec"]["selector"]["matchExpressions"][0]["values"]
    assert asked == ["api"]
    for component, endpoint in zip(asked, services["spec"]["endpoints"], strict=True):
        service = rendered.find("Service", f"-{component}")
        assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        labels = service["metadata"]["labels"]
        wanted = services["spec"]["selector"]["matchLabels"]
        assert wanted.items() <= labels.items()
    assert pods["metadata"]["labels"]["release"] == "prometheus"


def test_the_rules_are_those_of_the_file() -> None:
    """The PrometheusRule holds the alerts of files/alerts.yaml, their own templates untouched.

    Only the rule for metrics that are missing has to say whose.
    """
    (rule,) = case("hospital").of("PrometheusRule")
    file = yaml.safe_load((CHART / "files" / "alerts.yaml").read_text(encoding="utf-8"))
    missing = file["groups"][-1]["rules"][-1]
    assert missing["expr"] == "absent(dicom_adapter_ledger_up)"
    missing["expr"] = (
        'absent(dicom_adapter_ledger_up{namespace="imaging", app_kubernetes_io_instance="pacs-ai"})'
    )

    assert rule["spec"] == file
    assert rule["spec"]["groups"]
    # The label that rules and dashboard go by is taken from the pods and Services.
    (pods,), (services,) = (case("hospital").of(kind) for kind in ("PodMonitor", "ServiceMonitor"))
    assert pods["spec"]["podTargetLabels"] == ["app.kubernetes.io/instance"]
    assert services["spec"]["targetLabels"] == ["app.kubernetes.io/instance"]


def test_the_dashboard_is_the_file() -> None:
    """Grafana's sidecar finds the dashboard as it stands in files/dashboard.json."""
    item = case("hospital").find("ConfigMap", "-dashboard")
    file = (CHART / "files" / "dashboard.json").read_text(encoding="utf-8")

    assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert yaml.safe_load(item["data"]["dicom-adapter.json"]) == yaml.safe_load(file)


def test_annotations_lead_a_prometheus_that_goes_by_them() -> None:
    """Where they are asked for, every pod with metrics says where they are."""
    for pod in case("bare").pods():
        assert pod.annotations["prometheus.io/path"] == "/metrics"
        assert pod.annotations["prometheus.io/port"] == (
            "5000" if pod.component == "api" else "9090"
        )
    assert not any("prometheus.io/port" in pod.annotations for pod in case("default").pods())


@pytest.mark.parametrize(
    "values",
    [
        {},
        KEDA,
        {"scp": {"replicas": 2}, "settings": {"dicom": {"scp": {"processes": 3}}}},
        {"stages": {"pipeline": {"replicas": 9, "concurrency": 4}, "export": {"replicas": 7}}},
    ],
    ids=str,
)
def test_the_database_takes_as_many_connections_as_the_replicas_may_need(
    values: dict[str, Any],
) -> None:
    """Computed from the same numbers by which the processes bound themselves, and 100 at least."""
    rendered = render(values)
    written = json.loads(rendered.find("ConfigMap", "-settings")["data"]["appsettings.json"])
    settings = Settings(**written["DicomAdapter"])
    needed = 10
    for pod in rendered.pods():
        replicas = rendered.replicas(pod.component) or 4  # KEDA's maximum
        if pod.component in STAGES:
            own = values.get("stages", {}).get(pod.component, {}).get("concurrency")
            runs = own or stages.concurrency(settings)[pod.component]
            each = runs + SPARE_CONNECTIONS
        else:
            each = CONNECTIONS_OF.get(pod.component, 0)
        processes = (settings.dicom.scp.processes or 4) if pod.component == "scp" else 1
        needed += replicas * processes * min(each, settings.database.connections)

    arguments = rendered.pod("postgresql").main["args"]

    assert arguments == ["-c", f"max_connections={max(100, needed)}"]
