# SPDX-License-Identifier: Apache-2.0
"""The chart's manifests are valid, whole and fit together, whatever values they are made with."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import typer
from helm_python.chart import lint

from adapter import cli
from adapter.stages import STAGES as ALL_STAGES
from tests.support_chart import (
    CASES,
    CHART,
    STAGES,
    Pod,
    case,
    chart,
    parse,
    render,
    selects,
    values_of,
)

#: The oldest and the newest release of Kubernetes that the chart is for.
OLDEST, NEWEST = "1.29", "1.37"

#: Kinds that Kubernetes does not bring; their structure is looked at in tests of their own.
FOREIGN = {
    ("keda.sh/v1alpha1", "ScaledObject"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
    ("monitoring.coreos.com/v1", "PrometheusRule"),
}

#: Objects that the values of a case name, and that exist outside the chart.
GIVEN = {
    "hospital": {
        ("Secret", "redis-credentials"),
        ("Secret", "db-credentials"),
        ("Secret", "flower-credentials"),
        ("Secret", "registry"),
        ("PersistentVolumeClaim", "images"),
        ("PersistentVolumeClaim", "models"),
    },
    "declared": {
        ("Secret", "gateway-redis"),
        ("Secret", "gateway-postgresql"),
        ("Secret", "gateway-flower"),
    },
}

every_case = pytest.mark.parametrize("name", CASES)


def test_every_pipeline_stage_has_a_pool() -> None:
    """The chart has a pool for every pipeline stage, and no other pools."""
    assert STAGES == ALL_STAGES
    for name in CASES:
        deployments = {pod.component for pod in case(name).pods()}
        assert set(ALL_STAGES) < deployments


@every_case
def test_helm_finds_nothing_to_complain_of(name: str) -> None:
    """A strict lint is clean but for the icon, which the project does not have."""
    found = lint(str(CHART), values_of(name), strict=True, kube_version=f"v{NEWEST}.0")

    assert [message["error"] for message in found["messages"]] == ["icon is recommended"]
    assert found["errors"] == []


@pytest.mark.parametrize("release", [OLDEST, NEWEST])
@every_case
def test_every_object_is_valid(name: str, release: str) -> None:
    """Kubernetes' own schemas know every key, in the oldest and in the newest release."""
    foreign = set()
    for item in case(name).objects:
        try:
            kubernetes_validate.validate(item, release, strict=True)
        except kubernetes_validate.utils.SchemaNotFoundError:
            foreign.add((item["apiVersion"], item["kind"]))

    assert foreign == (FOREIGN if name == "hospital" else set())


def test_the_oldest_release_is_the_one_that_the_chart_asks_for() -> None:
    """The tested versions of Kubernetes are those in Chart.yaml."""
    text = (CHART / "Chart.yaml").read_text(encoding="utf-8")

    assert f'kubeVersion: ">={OLDEST}.0-0"' in text


@every_case
def test_no_name_is_there_twice(name: str) -> None:
    """Objects, variables, ports, volumes, mounts and containers have names of their own."""
    rendered = case(name)
    names = [(item["kind"], item["metadata"]["name"]) for item in rendered.objects]
    # A hook is made and taken away on its own: it may not share a name with what stays.
    assert len(names) == len(set(names))
    for pod in rendered.pods():
        assert_unique(pod.spec["volumes"], "name")
        claims = pod.owner["spec"].get("volumeClaimTemplates", [])
        volumes = {volume["name"] for volume in pod.spec["volumes"]}
        volumes |= {claim["metadata"]["name"] for claim in claims}
        assert_unique(pod.containers, "name")
        ports = [port for container in pod.containers for port in container.get("ports", [])]
        assert_unique(ports, "name")
        assert_unique(ports, "containerPort")
        for container in pod.containers:
            assert_unique(container.get("env", []), "name")
            assert_unique(container["volumeMounts"], "mountPath")
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted <= volumes


def assert_unique(items: list[dict[str, Any]], key: str) -> None:
    values = [item[key] for item in items]
    assert len(values) == len(set(values)), values


@every_case
def test_names_and_labels_are_legal(name: str) -> None:
    """Every object is in the release's namespace, has the recommended labels and a legal name."""
    for item in case(name).objects:
        metadata = item["metadata"]
        if (item["kind"], metadata["name"]) == ("ConfigMap", "gateway-site"):
            continue  # an extra object, not the chart's
        if item["kind"] != "CustomResourceDefinition":
            assert metadata["namespace"] == "imaging"
            assert re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", metadata["name"])
        for key in ("name", "instance", "version", "component", "part-of", "managed-by"):
            assert re.fullmatch(
                r"[A-Za-z0-9][-\w.]{0,62}", metadata["labels"]["app.kubernetes.io/" + key]
            )


@pytest.mark.parametrize("release", ["2024", "1e3", "a.b", "n" * 53])
def test_any_name_of_a_release_and_a_namespace_is_legal(release: str) -> None:
    """A number, a long name, one with dots: all names are legal, and all labels are texts."""
    values = {**values_of("hospital"), "operator": {"enabled": True}}
    for item in render(values, release=release, namespace="2025").objects:
        metadata = item["metadata"]
        if item["kind"] != "CustomResourceDefinition":
            assert metadata["namespace"] == "2025"
            assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", metadata["name"])
        assert metadata["labels"]["app.kubernetes.io/instance"] == release
        assert not re.search(r"'app.kubernetes.io/instance': [^']", str(item))


def test_two_releases_of_a_namespace_share_nothing() -> None:
    """Neither names nor what selects pods, also if the names begin alike for 40 characters."""
    first, second = (
        render(
            {"crds": {"install": False}}, release="radiology-department-north-building-floor-" + n
        )
        for n in ("1", "2")
    )
    names = {(item["kind"], item["metadata"]["name"]) for item in first.objects}
    assert not names & {(item["kind"], item["metadata"]["name"]) for item in second.objects}
    for item in first.of("Service"):
        assert not any(
            selects({"matchLabels": item["spec"]["selector"]}, pod.labels) for pod in second.pods()
        )


def commands() -> dict[str, Any]:
    return dict(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


def exists(arguments: list[str]) -> bool:
    """Return whether the command line takes these arguments."""
    first, *rest = arguments
    command: Any = commands().get(first)
    if command is None:
        return False
    if hasattr(command, "commands"):
        command, rest = command.commands.get(rest[0]), rest[1:]
    if command is None:
        return False
    command.make_context(first, list(rest), resilient_parsing=False)
    return True


@every_case
def test_every_command_exists(name: str) -> None:
    """Each container of the adapter runs an existing command, with valid arguments."""
    seen = set()
    for pod in case(name).pods():
        if pod.component in {"redis", "postgresql"}:
            continue
        for container in pod.containers:
            assert "command" not in container, "the image's entry point would be lost"
            assert exists(container["args"]), container["args"]
            seen.add(container["args"][0])

    assert {"scp", "worker", "api", "ledger"} <= seen


def test_a_command_that_is_not_there_would_be_seen() -> None:
    """The check above knows the stages' names, the options, and what there is not."""
    assert exists(["worker", "export", "--concurrency", "4"])
    assert not exists(["send-pigeons"])
    with pytest.raises(typer._click.exceptions.UsageError):
        exists(["worker", "export", "--pigeons"])


@every_case
def test_what_is_referred_to_is_there(name: str) -> None:
    """Secrets, ConfigMaps, claims and service accounts exist, with the keys that are used."""
    rendered = case(name)
    given = GIVEN.get(name, set())
    there = {(item["kind"], item["metadata"]["name"]): item for item in rendered.objects}
    used = set()
    for pod in rendered.pods():
        used |= set(references(pod))
    assert used
    created = {("Secret", name): keys for name, keys in rendered.created_passwords().items()}
    for kind, referred, key in used:
        if (kind, referred) in given:
            continue
        if (kind, referred) in created:
            assert key in created[kind, referred]
            continue
        assert (kind, referred) in there
        if key is not None:
            assert key in there[kind, referred]["data"]
    # And no object is unused.
    names = {(kind, referred) for kind, referred, _ in used}
    assert given | created.keys() <= names
    for kind in ("Secret", "ServiceAccount", "PersistentVolumeClaim"):
        for item in rendered.of(kind):
            assert (kind, item["metadata"]["name"]) in names


Reference = tuple[str, str, str | None]


def references(pod: Pod) -> Iterator[Reference]:
    """Yield what a pod refers to: kind, name, and key if it is one."""
    yield "ServiceAccount", pod.spec["serviceAccountName"], None
    for item in pod.spec.get("imagePullSecrets", []):
        yield "Secret", item["name"], None
    for volume in pod.spec["volumes"]:
        yield from references_of(volume)
    for container in pod.containers:
        assert "envFrom" not in container
        for variable in container.get("env", []):
            assert "valueFrom" not in variable, "secrets are files"


def references_of(volume: dict[str, Any]) -> Iterator[Reference]:
    if "configMap" in volume:
        yield "ConfigMap", volume["configMap"]["name"], None
    if "persistentVolumeClaim" in volume:
        yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"], None
    for source in volume.get("projected", {}).get("sources", [volume]):
        if secret := source.get("secret"):
            for item in secret["items"]:
                yield "Secret", secret.get("secretName") or secret["name"], item["key"]


@every_case
def test_selectors_select(name: str) -> None:
    """A workload selects its own pods; Services, budgets and policies those of one component."""
    rendered = case(name)
    pods = list(rendered.pods())
    for item in rendered.objects:
        kind, spec = item["kind"], item.get("spec", {})
        if kind in {"Deployment", "StatefulSet", "PodDisruptionBudget"}:
            selector = spec["selector"]
        elif kind == "Service":
            selector = {"matchLabels": spec["selector"]}
        elif kind == "NetworkPolicy":
            selector = spec["podSelector"]
        else:
            continue
        selected = [pod for pod in pods if selects(selector, pod.labels)]
        (component,) = {pod.component for pod in selected}
        assert len(selected) == 1
        assert component == item["metadata"]["labels"]["app.kubernetes.io/component"]
        if kind in {"Deployment", "StatefulSet"}:
            assert selected[0].owner is item
        if kind == "Service":
            ports = {port["name"]: port for port in selected[0].main["ports"]}
            for port in spec["ports"]:
                assert port["targetPort"] in ports
        for constraint in selected[0].spec.get("topologySpreadConstraints", []):
            assert selects(constraint["labelSelector"], selected[0].labels)


@every_case
def test_what_is_addressed_answers(name: str) -> None:
    """Host names in settings and triggers are Services of the release, at the ports they have."""
    rendered = case(name)
    services = {
        item["metadata"]["name"]: {port["port"] for port in item["spec"]["ports"]}
        for item in rendered.of("Service")
    }
    text = "\n".join(
        str(item) for item in rendered.objects if item["kind"] in {"ConfigMap", "ScaledObject"}
    )
    found = re.findall(r"//(?:\w+@)?([-a-z]+)(?:\.imaging\.svc)?:(\d+)/", text)
    echo = [pod.main["args"] for pod in rendered.pods() if pod.component == "echo"]
    found += [(arguments[-2], arguments[-1]) for arguments in echo]

    assert len(found) >= (1 if name == "hospital" else 2 if name != "bare" else 0)
    for host, port in found:
        assert int(port) in services[host]


@every_case
def test_probes_ask_the_process_itself(name: str) -> None:
    """Liveness is an HTTP question to the role's own port and never leaves the pod."""
    for pod in case(name).pods():
        if pod.component in {"passwords", "migrate", "echo"}:
            assert pod.spec["restartPolicy"] == "Never"
            continue
        main = pod.main
        ports = {port["name"] for port in main["ports"]}
        live = main["livenessProbe"]
        if pod.component in {"redis", "postgresql"}:
            assert live["tcpSocket"]["port"] in ports
            continue
        assert live["httpGet"]["port"] in ports
        assert live["httpGet"]["path"] in {"/live", "/health/live", "/healthcheck"}
        # What is alive is started: a slow start is no reason to be killed.
        assert main["startupProbe"]["httpGet"] == live["httpGet"]
        ready = main["readinessProbe"]["httpGet"]
        assert ready["port"] == live["httpGet"]["port"]
        if pod.component == "api":  # while the ledger is away, it answers that it is
            assert ready["path"] == "/health/live"


@every_case
def test_open_work_gets_the_time_it_was_promised(name: str) -> None:
    """Kubernetes waits longer than preStop, the role's own stop and what comes after it."""
    for pod in case(name).pods():
        promised = pod.environment.get("DICOMADAPTER__WORKERS__STOPSECONDS")
        if promised is None:
            continue
        stop = pod.main.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        before = int(stop[1]) if stop else 0
        assert pod.spec["terminationGracePeriodSeconds"] >= before + float(promised) + 10
        if pod.component == "scp":
            assert stop[0] == "sleep"
            assert before > 0, "load balancers have to notice first"
            strategy = pod.owner["spec"]["strategy"]
            assert strategy["rollingUpdate"]["maxUnavailable"] == 0
    assert case(name).pod("scp").environment["DICOMADAPTER__WORKERS__STOPSECONDS"] == "120"


def test_pods_of_a_component_spread_where_they_can() -> None:
    """Over nodes and zones if possible; or as in the values, or not at all."""
    for pod in case("default").pods():
        if pod.owner["kind"] == "Deployment":
            over = pod.spec["topologySpreadConstraints"]
            keys = [constraint["topologyKey"] for constraint in over]
            assert keys == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
            assert {constraint["whenUnsatisfiable"] for constraint in over} == {"ScheduleAnyway"}
    assert not any("topologySpreadConstraints" in pod.spec for pod in case("bare").pods())
    own = [{"topologyKey": "rack", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}]
    rendered = render({"scp": {"topologySpreadConstraints": own}})
    assert rendered.pod("scp").spec["topologySpreadConstraints"] == own


def test_a_version_alone_replaces_no_pod() -> None:
    """Pods have no label that changes with the version of the chart, least of all the database."""
    for name in CASES:
        for pod in case(name).pods():
            if pod.owner["kind"] in {"Deployment", "StatefulSet"}:
                assert not {"helm.sh/chart", "app.kubernetes.io/version"} & pod.labels.keys()


@every_case
def test_a_change_of_settings_starts_new_pods(name: str) -> None:
    """Each pod of the adapter carries the checksum of the settings it was started with."""
    changed = {**values_of(name)}
    changed["settings"] = {**changed.get("settings", {}), "workers": {"dueWorkPollSeconds": 7}}
    before, after = case(name), render(changed)
    for pod in before.pods():
        if pod.owner["kind"] == "Deployment":
            other = after.pod(pod.component)
            assert pod.annotations["checksum/settings"] != other.annotations["checksum/settings"]


def test_a_stage_may_differ_in_everything() -> None:
    """The pipeline pool has the image, nodes, GPUs and volumes of its own; the others do not."""
    rendered = case("hospital")
    pipeline, export = rendered.pod("pipeline"), rendered.pod("export")

    assert pipeline.main["image"] == "registry.example/imaging/lung-pipeline:7"
    assert export.main["image"].startswith("registry.example/imaging/dicom-adapter@sha256:")
    assert pipeline.main["resources"]["limits"]["nvidia.com/gpu"] == 1
    # Keys that it does not override have the default.
    assert pipeline.spec["priorityClassName"] == export.spec["priorityClassName"] == "imaging"
    assert pipeline.main["resources"]["requests"] == {"cpu": "1", "memory": "1Gi"}
    assert pipeline.spec["runtimeClassName"] == "nvidia"
    assert pipeline.spec["nodeSelector"] == {"gpu": "true"}
    assert pipeline.spec["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert {"/models", "/dev/shm"} <= {item["mountPath"] for item in pipeline.main["volumeMounts"]}
    assert pipeline.environment["OMP_NUM_THREADS"] == "4"
    assert pipeline.main["args"] == ["worker", "pipeline", "--concurrency", "1"]
    for key in ("runtimeClassName", "nodeSelector", "tolerations"):
        assert key not in export.spec
    assert "nvidia.com/gpu" not in str(export.spec)
    assert "models" not in str(export.spec)


def test_the_dicom_service_keeps_the_senders_address() -> None:
    """Port 104 leads to 11112, and traffic is not sent on by a node under an address of its own."""
    for name in ("default", "hospital"):
        spec = case(name).find("Service", "-dicom")["spec"]
        (port,) = spec["ports"]
        assert (port["port"], port["targetPort"]) == (104, "dicom")
        assert spec["externalTrafficPolicy"] == "Local"
        ports = {
            item["name"]: item["containerPort"] for item in case(name).pod("scp").main["ports"]
        }
        assert ports["dicom"] == 11112
    assert case("hospital").find("Service", "-dicom")["spec"]["loadBalancerSourceRanges"] == [
        "10.0.0.0/8"
    ]
    # It is only valid where there is traffic from outside.
    assert "externalTrafficPolicy" not in case("bare").find("Service", "-dicom")["spec"]


def test_crds_are_the_files_and_are_kept() -> None:
    """Each file of files/crds is an object of the release, unchanged, and outlives it."""
    files = sorted((CHART / "files" / "crds").glob("*.yaml"))
    kept = {
        item["metadata"]["name"]: item for item in case("default").of("CustomResourceDefinition")
    }

    assert len(files) == len(kept) == 3
    assert not chart().crds, "what is in crds/ is never upgraded"
    for file in files:
        (original,) = parse(file.read_text(encoding="utf-8"))
        rendered = kept[original["metadata"]["name"]]
        assert rendered["spec"] == original["spec"]
        assert rendered["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    for item in case("declared").of("CustomResourceDefinition"):
        assert "helm.sh/resource-policy" not in item["metadata"].get("annotations", {})
    assert case("bare").of("CustomResourceDefinition") == []
