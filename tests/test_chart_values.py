# SPDX-License-Identifier: Apache-2.0
"""The chart's values: their schema, their effect, and their documentation."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import HelmRenderError, HelmValuesError

from adapter import __version__, stages
from adapter.settings import Settings, load
from tests.support_chart import CASES, CHART, STAGES, Pod, Rendered, case, render

every_case = pytest.mark.parametrize("name", CASES)


def load_renderer() -> Any:
    spec = importlib.util.spec_from_file_location("render_chart", CHART / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


renderer = load_renderer()


def at(path: str, value: Any) -> dict[str, Any]:
    """Return values with one key."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def merged(*values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in values:
        for key, value in one.items():
            below = isinstance(value, dict) and isinstance(found.get(key), dict)
            found[key] = merged(found[key], value) if below else value
    return found


# -- what is written from them -----------------------------------------------------------------


def test_the_readme_and_the_schema_are_up_to_date() -> None:
    """What stands in the repository is what `make docs` writes."""
    readme = (CHART / "README.md").read_text(encoding="utf-8")

    assert renderer.readme(readme) == readme, "run `make docs`"
    assert (CHART / "values.schema.json").read_text() == renderer.schema_text(), "run `make docs`"


def leaves(node: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(node, dict) or not node:
        return [path]
    return [leaf for key, value in node.items() for leaf in leaves(value, (*path, key))]


def test_every_value_is_explained() -> None:
    """Each value has a sentence, or a section above it that says what it is, or the defaults do."""
    explained = renderer.descriptions()
    assert len(explained) > 120
    for leaf in leaves(renderer.defaults()):
        paths = [".".join(leaf[:length]) for length in range(1, len(leaf) + 1)]
        # A component may override every key of `defaults`, which is explained there.
        general = f"defaults.{leaf[2] if leaf[0] == 'stages' else leaf[1]}" if leaf[1:] else ""
        assert {*paths, general} & explained.keys(), leaf


def test_every_value_that_is_explained_is_there() -> None:
    """The table names no value that the chart does not have."""
    defaults = renderer.defaults()
    for path in renderer.descriptions():
        node: Any = defaults
        for key in path.split("."):
            assert key in node, path
            node = node[key]


# -- settings ----------------------------------------------------------------------------------


def mounted(rendered: Rendered, pod: Pod, folder: Path) -> dict[str, Path]:
    """Make what a pod finds at its mounts that come from ConfigMaps and Secrets."""
    found: dict[str, Path] = {}
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    for mount in pod.main["volumeMounts"]:
        volume = volumes.get(mount["name"], {})
        if "configMap" in volume:
            data = rendered.find("ConfigMap", volume["configMap"]["name"])["data"]
        elif "projected" in volume:
            sources = [source["secret"] for source in volume["projected"]["sources"]]
            data = {item["path"]: "s3cret\n" for source in sources for item in source["items"]}
        else:
            continue
        for name, text in data.items():
            path = folder / mount["mountPath"].lstrip("/") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            found[f"{mount['mountPath']}/{name}"] = path
    return found


def settings_in(
    rendered: Rendered, component: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """Load the settings as the container of a component does."""
    pod = rendered.pod(component)
    files = mounted(rendered, pod, folder)
    for name, value in pod.environment.items():
        monkeypatch.setenv(name, str(files.get(value, value)))
    return load()


def components(name: str) -> list[str]:
    return [pod.component for pod in case(name).pods() if "DICOMADAPTER_CONFIG" in pod.environment]


@pytest.mark.parametrize(
    ("name", "component"), [(name, role) for name in CASES for role in components(name)]
)
def test_every_role_can_read_its_settings(
    name: str, component: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter's own model takes what a container finds: file, environment and Secrets."""
    settings = settings_in(case(name), component, tmp_path, monkeypatch)
    main = case(name).pod(component).main
    ports = {port["name"]: port["containerPort"] for port in main.get("ports", [])}

    assert str(settings.data) == "/var/lib/dicom-adapter/data"
    assert str(settings.spool_path) == "/spool"
    wanted = {
        "dicom": (settings.dicom.scp.host, settings.dicom.scp.port),
        "rest": (settings.api.host, settings.api.port),
        "flower": (settings.flower.host, settings.flower.port),
        "metrics": (settings.metrics.host, settings.metrics.port),
    }
    for port, number in ports.items():
        assert wanted[port][1] == number
        assert wanted[port][0] in {"", "0.0.0.0", "::"}
    has_passwords = name != "bare"
    assert settings.database_url.startswith("postgresql+psycopg://")
    takes = str(main["volumeMounts"])
    if has_passwords and "/run/secrets/dicom-adapter" in takes:
        variables = case(name).pod(component).environment
        if "DICOMADAPTER__DATABASE__PASSWORDFILE" in variables:
            assert ":s3cret@" in settings.database_url
        if "DICOMADAPTER__BROKER__PASSWORDFILE" in variables:
            assert ":s3cret@" in stages.broker_url(settings)


def test_the_values_settings_arrive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The roles read the values under `settings`, pipelines too."""
    settings = settings_in(case("hospital"), "export", tmp_path, monkeypatch)

    assert settings.dicom.scp.maximum_number_of_associations == 50
    assert settings.dicom.scu.ae_title == "GATEWAY"
    assert settings.storage.retention_seconds == 3600
    assert settings.pipelines["lung"].command == ["/opt/lung/run", "{input}", "{output}"]
    assert settings.workers.stop_seconds == 60


# -- refusals ----------------------------------------------------------------------------------

EXTERNAL = "postgresql+psycopg://adapter@db.example/adapter"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (at("pigeons", 1), "pigeons"),
        (at("scp.pigeons", 1), "pigeons"),
        (at("stages.pigeons", {}), "pigeons"),
        (at("stages.export.replicas", "two"), "got string, want integer"),
        (at("stages.notification.replicas", 0), "minimum"),
        (at("stages.grouping.replicas", 0), "minimum"),
        (at("stages.export.concurrency", 0), "minimum"),
        (at("stages.export.autoscaling.keda.targetUnfinished", 0), "minimum"),
        (at("stages.export.autoscaling.keda.maximum", 3), "maximum"),
        (at("scp.service.type", "ExternalName"), "value must be one of"),
        (at("scp.service.port", 70000), "maximum"),
        (at("scp.service.loadBalancerSourceRanges", ["10.0.0.1"]), "does not match pattern"),
        (at("spool.accessMode", "ReadWriteOncePod"), "value must be one of"),
        (at("spool.size", "plenty"), "does not match pattern"),
        (at("image.digest", "sha256:12"), "does not match pattern"),
        (at("defaults.image.tag", "x"), "image"),
        (at("echoTest.calledAETitle", "SEVENTEEN LETTERS"), "does not match pattern"),
        (at("externalRedis.url", "redis://:secret@redis.example"), "does not match pattern"),
        (at("externalDatabase.url", "postgresql+psycopg://a:b@db/x"), "does not match pattern"),
        (at("externalDatabase.url", "sqlite:////spool/ledger"), "does not match pattern"),
        (at("networkPolicy.from.dicom", [{"podSelector": {}}]), "podSelector"),
        # The adapter's settings, as its own model has them.
        (at("settings.dicom.scp.pigeons", 1), "pigeons"),
        (at("settings.dicom.scp.maximumNumberOfAssociations", 0), "minimum"),
        (at("settings.storage.watermarkPercent", 101), "maximum"),
        (at("settings.pipelines.x", {"name": "X"}), "missing property 'command'"),
        # What the chart decides itself.
        *[(at(f"settings.{path}", {}), path.rpartition(".")[2]) for path in renderer.OWN_SETTINGS],
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_the_schema(values: dict[str, Any], says: str) -> None:
    """Helm refuses a value that is unknown, of another type or out of bounds, and says which."""
    with pytest.raises(HelmValuesError) as refusal:
        render(values)

    assert says in str(refusal.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (at("redis.enabled", False), "externalRedis.url"),
        (at("postgresql.enabled", False), "externalDatabase.url"),
        (at("externalRedis.url", "redis://redis.example"), "redis.enabled=false"),
        (at("externalDatabase.url", EXTERNAL), "postgresql.enabled"),
        (at("scp.service", {"type": "ClusterIP", "nodePort": 30104}), "nodePort"),
        (at("scp.service.loadBalancerSourceRanges", ["10.0.0.0/8"]), "networkPolicy.from.dicom"),
        (
            at("stages.export.autoscaling", {"keda": {"enabled": True}, "hpa": {"enabled": True}}),
            "stages.export.autoscaling",
        ),
        (at("stageAutoscaling.keda", {"enabled": True, "minReplicas": 0}), "stages.notification"),
        (
            at("scp.autoscaling.hpa", {"enabled": True, "minReplicas": 9}),
            "minReplicas is greater",
        ),
        (at("postgresql.maxConnections", 61), "may need 62 connections"),
        (
            {"externalDatabase": {"url": "postgresql+psycopg://db/a", "maxConnections": 61}}
            | at("postgresql.enabled", False),
            "externalDatabase.maxConnections=61",
        ),
        (at("defaults.extraEnv", [{"name": "DICOMADAPTER_CONFIG", "value": "x"}]), "is taken"),
        (at("stages.export.extraVolumes", [{"name": "tmp", "emptyDir": {}}]), "is taken"),
        (at("api.extraEnv", [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]), "twice"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], says: str) -> None:
    """Helm stops at values that contradict each other, and says what to do."""
    with pytest.raises(HelmRenderError) as refusal:
        render(values)

    assert says in str(refusal.value)


ONE_NODE = at("spool.accessMode", "ReadWriteOnce")


@pytest.mark.parametrize(
    "more",
    [
        *[at(f"stages.{stage}.replicas", 2) for stage in STAGES],
        at("scp.replicas", 2),
        at("api.replicas", 2),
        at("scp.autoscaling.hpa.enabled", True),
        at("stages.export.autoscaling.hpa.enabled", True),
        at("stageAutoscaling.keda.enabled", True),
    ],
    ids=str,
)
def test_a_volume_of_one_node_serves_one_replica(more: dict[str, Any]) -> None:
    """ReadWriteOnce is refused with more than one replica of anything that mounts the spool."""
    with pytest.raises(HelmRenderError, match=r"accessMode=ReadWriteOnce serves one node"):
        render(merged(ONE_NODE, more))


def test_a_volume_of_one_node_holds_its_pods_together() -> None:
    """With ReadWriteOnce all pods that mount the spool have to share a node; else they need not."""
    rendered = case("one-node")
    for pod in rendered.pods():
        terms = pod.spec.get("affinity", {}).get("podAffinity", {})
        required = terms.get("requiredDuringSchedulingIgnoredDuringExecution", [])
        mounts = any("persistentVolumeClaim" in volume for volume in pod.spec["volumes"])
        assert len(required) == (1 if mounts else 0)
        for term in required:
            assert term["topologyKey"] == "kubernetes.io/hostname"
            wanted = term["labelSelector"]["matchLabels"]
            holders = {
                other.component
                for other in rendered.pods()
                if wanted.items() <= other.labels.items()
            }
            assert holders == {"scp", *STAGES, "api", "operator"}
            assert wanted.items() <= pod.labels.items(), "the first pod would never be placed"
            # What the values ask for is still there.
            assert "nodeAffinity" in pod.spec["affinity"]
    assert "affinity" not in case("default").pod("scp").spec


@every_case
def test_the_spool_is_kept(name: str) -> None:
    """The claim outlives the release; where one is given, none is made."""
    claims = case(name).of("PersistentVolumeClaim")
    if name == "hospital":
        assert claims == []
        return
    (claim,) = claims
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    mode = "ReadWriteOnce" if name == "one-node" else "ReadWriteMany"
    assert claim["spec"]["accessModes"] == [mode]


def test_a_false_in_a_component_overrides_a_true_above() -> None:
    """What a component says counts, also if it is `false`, `0` or empty."""
    rendered = case("hospital")
    assert rendered.replicas("reclamation") == 2
    values = merged(
        at("defaults.preStopSeconds", 5),
        at("stages.export.preStopSeconds", 0),
        at("defaults.nodeSelector", {"disk": "fast"}),
    )
    quiet = render(values)
    assert "lifecycle" not in quiet.pod("export").main
    assert quiet.pod("grouping").main["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]
    assert quiet.pod("grouping").spec["nodeSelector"] == {"disk": "fast"}


def test_extra_objects_are_templates() -> None:
    """More objects may use the chart's names."""
    assert case("declared").find("ConfigMap", "gateway-site")["data"] == {"site": "north"}


@every_case
def test_notes_say_where_things_are(name: str) -> None:
    """The notes name Services that are there, and warn of what is not safe."""
    rendered, notes = case(name), case(name).notes
    for service in ("dicom", "api"):
        assert rendered.find("Service", f"-{service}")["metadata"]["name"] in notes
    assert ("Flower" in notes) == bool([p for p in rendered.pods() if p.component == "flower"])
    assert ("no back-up" in notes) == (name not in {"bare", "hospital"})
    assert "{{" not in notes


def test_the_notes_warn_of_an_open_load_balancer() -> None:
    """A load balancer without source ranges, or one that hides addresses, gives a warning."""
    loose = at("scp.service", {"type": "LoadBalancer", "externalTrafficPolicy": "Cluster"})
    notes = render(loose).notes

    assert "open to every client" in notes
    assert "a node's address instead of the sender's" in notes
    assert "WARNING: the DICOM port" not in case("hospital").notes


def test_the_chart_is_of_this_release() -> None:
    """Chart and adapter have one version."""
    metadata = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))

    assert metadata["appVersion"] == metadata["version"] == __version__
