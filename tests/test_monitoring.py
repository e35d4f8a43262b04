# SPDX-License-Identifier: Apache-2.0
"""Dashboard, alerts and their docs name metrics that the roles expose: checked by real scrapes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import CollectorRegistry

from adapter.embedded.roles import accepts, own_command, worker_command
from adapter.operator.metrics import OperatorCollector
from adapter.operator.resources import KINDS
from adapter.stages import STAGES
from tests.support_metrics import Scrape, ask, scrape
from tests.support_promql import names, tokens
from tests.support_stack import Stack, free_port
from tests.support_waiting import eventually
from tests.support_wire import Caller

ROOT = Path(__file__).parents[1]
RULES = ROOT / "helm" / "files" / "alerts.yaml"
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((ROOT / "helm" / "files" / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
PAGE = (ROOT / "docs" / "operations.md").read_text()
SECTION = PAGE[PAGE.index("\n## Metrics and alerts") :].partition("\n## Metrics and alerts")[2]
SECTION = SECTION.partition("\n## ")[0]

#: Labels that Prometheus gives to what it scrapes.
TARGET_LABELS = {"namespace", "app_kubernetes_io_instance", "instance", "job", "pod"}


#: What chooses an adapter on the dashboard: a namespace may have several releases.
OF_RELEASE = 'namespace=~"$namespace", app_kubernetes_io_instance=~"$release"'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scrape]:
    """The metrics of all roles, the SCP's after an association."""
    data = tmp_path_factory.mktemp("monitored") / "data"
    api = {"host": "127.0.0.1", "port": free_port()}
    stack = Stack(data, {}, api=api, metrics={"host": "127.0.0.1"})
    ports = {"scp": free_port(), "worker": free_port()}
    commands = {
        "scp": own_command("scp"),
        "worker": worker_command(STAGES, 4, "monitored"),
        "api": own_command("api"),
    }
    with ExitStack() as ended:
        ended.callback(stack.close)
        stack.start("redis")
        log = ended.enter_context((data / "roles.log").open("ab"))
        for role, command in commands.items():
            environment = {**os.environ, **stack.settings.environment}
            if role in ports:
                environment["DICOMADAPTER__METRICS__PORT"] = str(ports[role])
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            ended.callback(process.wait, 40)
            ended.callback(process.terminate)
        stack.add_destination("PACS", free_port())
        eventually(lambda: accepts("127.0.0.1", stack.port), 40)
        stack.configure("ADAPTER")
        with Caller(stack.port) as caller:
            assert caller.associate()[:1] == b"\2"
            assert caller.release()
        for port, path in ((ports["worker"], "/ready"), (api["port"], "/health/ready")):
            eventually(lambda port=port, path=path: _is_ready(port, path), 40)
        found = [scrape(port) for port in (*ports.values(), api["port"])]
        found.append(operators())
        yield Scrape(tuple(family for one in found for family in one.families))


def operators() -> Scrape:
    """Return the metrics of an operator, which would need an API server to run."""
    registry = CollectorRegistry()
    amounts = {kind.name: (1, 0) for kind in KINDS}
    registry.register(OperatorCollector(lambda: amounts, list))
    return Scrape.parse(generate_latest(registry).decode())


def _is_ready(port: int, path: str) -> bool:
    try:
        return ask(port, path)[0] == 200
    except OSError:
        return False


def check(expression: str, served: Scrape) -> None:
    """Fail if an expression names a metric, a label or a label's value that no role exposes."""
    named = names(expression.replace("$namespace", ".*").replace("$release", ".*"))
    assert named.metrics, "it names no metric"
    assert named.metrics <= served.names(), "no role exposes such a metric"
    labels = {
        metric: {label for s in served.samples() if s.name == metric for label in s.labels}
        for metric in named.metrics
    }
    for metric, label, operator, value in named.matchers:
        if label in TARGET_LABELS:
            continue
        assert label in labels[metric], f"{metric} has no label {label}"
        known = served.labels(metric, label)
        wanted = value.split("|") if operator in {"=~", "!~"} else [value]
        assert set(wanted) <= known, f"{label} of {metric} is never {value}"
    for label in named.grouped - TARGET_LABELS:
        assert any(label in of_metric for of_metric in labels.values()), f"no label {label}"


# -- alerts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_names_existing_metrics_and_has_instructions(
    rule: dict[str, Any], served: Scrape
) -> None:
    """Its metrics and labels exist; it has a severity, a summary, and a paragraph in the docs."""
    check(rule["expr"], served)
    assert re.fullmatch(r"\d+[mh]", rule["for"])
    assert rule["labels"] in [{"severity": one} for one in ("critical", "warning", "info")]
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert page == "docs/operations.md"
    assert anchor == rule["alert"].lower()
    text = SECTION.partition(f"\n#### {rule['alert']}\n")[2].partition("\n#### ")[0]
    assert len(text.split()) > 15, "the docs do not say what to do"
    for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
        named = names(rule["expr"])
        assert label in named.grouped or not named.grouped, f"{label} is aggregated away"


def test_the_docs_explain_no_alert_that_is_not_there() -> None:
    """Headings of the docs and names of the rules are the same, in the same order."""
    written = re.findall(r"^#### (\w+)$", SECTION, re.MULTILINE)
    assert written == [rule["alert"] for rule in ALERTS]
    assert len(set(written)) == len(written)


@pytest.mark.needs("prometheus")
def test_promtool_accepts_the_rules() -> None:
    """Prometheus itself reads the rules."""
    done = subprocess.run(
        ["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


RELEASE = "app_kubernetes_io_instance"


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    inside = ", ".join(f'{label}="{value}"' for label, value in labels.items())
    return {"series": f"{name}{{{inside}}}", "values": values}


#: Series, and the labels of the alert that they raise: none at first, one after some time.
CASES: dict[str, tuple[list[dict[str, str]], dict[str, str]]] = {
    "DicomAdapterNoWorker": (
        [
            series("dicom_adapter_workers", "1x10 0x20", stage="export"),
            series("dicom_adapter_due", "5x40", stage="export"),
            series("dicom_adapter_workers", "0x40", stage="grouping"),
            series("dicom_adapter_due", "0x40", stage="grouping"),
            # Another release of the namespace.
            series("dicom_adapter_workers", "1x40", stage="export", **{RELEASE: "other"}),
            series("dicom_adapter_due", "0x40", stage="export", **{RELEASE: "other"}),
        ],
        {"severity": "critical", "stage": "export"},
    ),
    "DicomAdapterStoreFailures": (
        [
            series("dicom_adapter_instances_total", "0+90x40", called_ae_title="A", status="0000"),
            series(
                "dicom_adapter_instances_total", "0x10 0+10x30", called_ae_title="A", status="A700"
            ),
            series("dicom_adapter_instances_total", "0+90x40", called_ae_title="B", status="0000"),
        ],
        {"severity": "warning", "called_ae_title": "A"},
    ),
    "DicomAdapterDiskFull": (
        [
            series("dicom_adapter_spool_free_bytes", "100x10 9x30"),
            series("dicom_adapter_spool_reserved_bytes", "10x40"),
        ],
        {"severity": "critical"},
    ),
    "DicomAdapterLoopFails": (
        [
            series("dicom_adapter_loop_failures_total", "0x10 0+50x30", role="scp", loop="a"),
            series("dicom_adapter_loop_failures_total", "0+1x40", role="scp", loop="b"),
        ],
        {"severity": "warning", "role": "scp", "loop": "a"},
    ),
    "DicomAdapterWaitsForOperator": (
        [series("dicom_adapter_kept", "0x10 2x30", kind="parked-jobs", instance=i) for i in "ab"],
        {"severity": "warning", "kind": "parked-jobs"},
    ),
}


@pytest.mark.needs("prometheus")
@pytest.mark.parametrize("name", CASES)
def test_an_alert_comes_when_it_should(name: str, tmp_path: Path) -> None:
    """Played to Prometheus' own rule tests: silent while all is well, one alert when it is not."""
    (rule,) = [rule for rule in ALERTS if rule["alert"] == name]
    series, labels = CASES[name]
    file = tmp_path / "test.yaml"
    expected = {
        "promql_expr_test": [],
        "interval": "1m",
        "input_series": series,
        "alert_rule_test": [
            {"eval_time": "9m", "alertname": name, "exp_alerts": []},
            {"eval_time": "30m", "alertname": name, "exp_alerts": [{"exp_labels": labels}]},
        ],
    }
    # Only whether it comes, and for whom: the annotations' numbers are Prometheus' business.
    rules = tmp_path / "rules.yaml"
    bare = {key: value for key, value in rule.items() if key != "annotations"}
    rules.write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [bare]}]}))
    file.write_text(yaml.safe_dump({"rule_files": [str(rules)], "tests": [expected]}))
    done = subprocess.run(
        ["promtool", "test", "rules", file], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -- dashboard -------------------------------------------------------------------------------------


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_uses_existing_metrics(panel: dict[str, Any], served: Scrape) -> None:
    """Every panel's metrics and labels exist."""
    for target in panel["targets"]:
        check(target["expr"], served)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_can_be_read(panel: dict[str, Any]) -> None:
    """It has a title, an explanation, a unit, a legend for each query, and the chosen source."""
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == source
    for target in panel["targets"]:
        assert target["legendFormat"]
        assert target["datasource"] == source
        assert OF_RELEASE in target["expr"]
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            assert label in names(target["expr"].replace(OF_RELEASE, 'job=""')).grouped


def test_the_dashboard_can_be_imported() -> None:
    """It has a name, variables for what is shown, groups, and no two panels in one place."""
    assert DASHBOARD["uid"] == "dicom-adapter"
    assert [one["name"] for one in DASHBOARD["templating"]["list"]] == [
        "datasource",
        "namespace",
        "release",
    ]
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["At a glance", "Receiving", "Stages", "Exports", "Storage"]
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24


# -- docs ------------------------------------------------------------------------------------------


def test_every_metric_is_on_the_page_with_its_labels(served: Scrape) -> None:
    """docs/operations.md lists the metrics of the roles, and no others."""
    written: dict[str, set[str]] = {}
    for line in re.findall(r"^\|( `dicom_adapter_.*)\|$", SECTION, re.MULTILINE):
        metrics, labels, meaning = (cell.strip() for cell in line.split("|"))
        assert meaning
        for metric in re.findall(r"`(\w+)`", metrics):
            written[metric] = {label for label in labels.split(", ") if label}
            if metric.endswith(("_sum", "_count")):  # they share the buckets' line
                written[metric].discard("le")
    series: dict[str, set[str]] = {}
    for sample in served.samples():
        series.setdefault(sample.name, set()).update(sample.labels)

    assert written == series


# -- the reader of PromQL itself -------------------------------------------------------------------


def test_an_expression_is_taken_apart() -> None:
    """Metrics, matchers and grouped labels are found; functions and operators are not metrics."""
    named = names(
        'sum by (a, b) (rate(m_total{c="x", d=~"y|z"}[5m])) / on (a) max without (e) (n) > 1.5e3'
    )
    assert named.metrics == {"m_total", "n"}
    assert named.matchers == [("m_total", "c", "=", "x"), ("m_total", "d", "=~", "y|z")]
    assert named.grouped == {"a", "b", "e"}
    assert names("absent(up) and rate(x[1h30m]) or y").metrics == {"up", "x", "y"}


@pytest.mark.parametrize(
    "wrong", ["sum(rate(m[5m])", "m{a}", "m{a=b}", 'm{a="1" b="2"}', "m ; n", "m{a=~'x}", "m)"]
)
def test_what_is_no_promql_is_refused(wrong: str) -> None:
    """A typing error does not pass as something else."""
    with pytest.raises(ValueError, match=r"."):
        names(wrong)


def test_a_name_that_nobody_tells_is_found_out(served: Scrape) -> None:
    """The comparison itself would notice a wrong metric, label, value or group."""
    check('max by (stage) (dicom_adapter_due{stage="export"})', served)
    for wrong in (
        "dicom_adapter_dues",
        'dicom_adapter_due{stages="export"}',
        'dicom_adapter_due{stage="exports"}',
        "max by (stages) (dicom_adapter_due)",
        "rates(dicom_adapter_due[5m])",
    ):
        assert tokens(wrong)
        with pytest.raises(AssertionError):
            check(wrong, served)
