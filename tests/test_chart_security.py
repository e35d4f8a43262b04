# SPDX-License-Identifier: Apache-2.0
"""The chart's pods have the rights they need: those of restricted Pod Security, and few flows."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support_chart import CASES, STAGES, Rendered, case, render, selects
from tests.support_kubernetes import RULES

every_case = pytest.mark.parametrize("name", CASES)

#: Volume types that the restricted profile allows.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"}
VOLUMES |= {"projected", "secret"}


def violations(spec: dict[str, Any]) -> list[str]:
    """Return what the restricted profile of the Pod Security Standards forbids in a pod."""
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)]
    for volume in spec.get("volumes", []):
        found += [f"volume {key}" for key in volume.keys() - {"name"} - VOLUMES]
    of_pod = spec.get("securityContext", {})
    found += [key for key in ("sysctls", "windowsOptions", "seLinuxOptions") if of_pod.get(key)]
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        own = container.get("securityContext", {})
        context = {**of_pod, **own}
        capabilities = own.get("capabilities", {})
        wrong = {
            "privileged": own.get("privileged"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is not False,
            "capabilities.drop": "ALL" not in capabilities.get("drop", []),
            "capabilities.add": set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"},
            "runAsNonRoot": context.get("runAsNonRoot") is not True,
            "runAsUser": context.get("runAsUser") == 0,
            "seccompProfile": context.get("seccompProfile", {}).get("type")
            not in {"RuntimeDefault", "Localhost"},
            "procMount": own.get("procMount", "Default") != "Default",
            "hostPort": any(port.get("hostPort") for port in container.get("ports", [])),
            "host probe": "'host':" in str([container[key] for key in container if "Probe" in key]),
        }
        found += [f"{container['name']}: {key}" for key, is_wrong in wrong.items() if is_wrong]
    return found


@every_case
def test_pods_are_admitted_where_pod_security_is_restricted(name: str) -> None:
    """Every pod of every case holds the restricted profile, hooks and built-in servers too."""
    for pod in case(name).pods():
        assert violations(pod.spec) == [], pod.component


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"hostNetwork": True}, ["hostNetwork"]),
        ({"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}, ["volume hostPath"]),
        ({"securityContext": {}}, ["scp: runAsNonRoot", "scp: seccompProfile"]),
    ],
)
def test_what_restricted_forbids_would_be_seen(change: dict[str, Any], found: list[str]) -> None:
    """The check above is not blind."""
    assert violations({**case("default").pod("scp").spec, **change}) == found
    (container,) = case("default").pod("scp").spec["containers"]
    for key in ("allowPrivilegeEscalation", "capabilities"):
        context = {k: v for k, v in container["securityContext"].items() if k != key}
        bad = [{**container, "securityContext": context}]
        assert violations({**case("default").pod("scp").spec, "containers": bad})


@every_case
def test_the_root_file_system_is_read_only(name: str) -> None:
    """What a role writes besides the spool goes to an emptyDir of limited size, as user 10001."""
    for pod in case(name).pods():
        volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
        assert pod.main["securityContext"]["readOnlyRootFilesystem"] is True
        writable = {
            mount["mountPath"]: volumes.get(mount["name"], {})
            for mount in pod.main["volumeMounts"]
            if not mount.get("readOnly")
        }
        assert "/tmp" in writable
        for volume in writable.values():
            if "emptyDir" in volume:
                assert volume["emptyDir"]["sizeLimit"]
        if pod.component not in {"redis", "postgresql"}:
            assert pod.spec["securityContext"]["runAsUser"] == 10001
            assert "/var/lib/dicom-adapter" in writable
            assert pod.environment["DICOMADAPTER_CONFIG"] == "/etc/dicom-adapter/appsettings.json"


@every_case
def test_only_two_speak_to_kubernetes(name: str) -> None:
    """Each component has an account of its own; operator and the passwords' job get a token."""
    accounts = [pod.spec["serviceAccountName"] for pod in case(name).pods()]
    assert len(accounts) == len(set(accounts))
    for pod in case(name).pods():
        assert pod.spec["automountServiceAccountToken"] is (
            pod.component in {"operator", "passwords"}
        )
    for account in case(name).of("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_the_operator_has_exactly_the_rights_it_uses() -> None:
    """It lists, watches and patches what tests/test_operator_faults.py sees it do, nothing else."""
    rendered = case("default")
    role = rendered.find("Role", "-operator")
    binding = rendered.find("RoleBinding", "-operator")
    granted, used = (
        {
            (group, resource, verb)
            for rule in rules
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        for rules in (role["rules"], RULES)
    )

    assert granted == used
    assert binding["subjects"][0]["name"] == rendered.pod("operator").spec["serviceAccountName"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert not rendered.of("ClusterRole")
    assert not case("bare").of("Role")


def test_the_passwords_job_can_read_no_other_secret() -> None:
    """It may create a Secret, and read and extend the one that the pods mount."""
    rendered = case("default")
    create, own = rendered.find("Role", "-passwords")["rules"]
    (secret,) = rendered.created_passwords()

    assert (create["resources"], create["verbs"]) == (["secrets"], ["create"])
    assert (own["resources"], own["verbs"]) == (["secrets"], ["get", "patch"])
    assert own["resourceNames"] == [secret]
    assert not case("declared").created_passwords()  # it names Secrets for all of them


@every_case
def test_each_role_is_given_its_own_passwords_only(name: str) -> None:
    """Passwords are files, and only of the servers that a role talks to."""
    servers = {"redis", "postgresql"} if name != "bare" else set()
    wanted = dict.fromkeys(("scp", *STAGES, "api"), servers)
    wanted |= {"flower": {"redis", "flower"}, "operator": {"postgresql"}, "migrate": {"postgresql"}}
    wanted |= {"passwords": set(), "echo": set(), "redis": {"redis"}, "postgresql": {"postgresql"}}
    for pod in case(name).pods():
        given = re.findall(r"'path': '(\w+)-password'", str(pod.spec["volumes"]))
        expected = wanted[pod.component]
        assert set(given) == expected, pod.component
        variables = {key for key in pod.environment if key.endswith("PASSWORDFILE")}
        if pod.component not in {"redis", "postgresql"}:
            assert len(variables) == len(expected)


@every_case
def test_no_password_stands_outside_a_secret(name: str) -> None:
    """Neither settings nor environment nor arguments hold a password."""
    for item in case(name).objects:
        assert item["kind"] != "Secret"
        if item["kind"] not in {"CustomResourceDefinition", "PrometheusRule"}:
            assert not re.search(r"://[^/@\s]*:[^/@\s]+@", str(item))


# -- flows -----------------------------------------------------------------------------------------

Flow = tuple[str, str, int]


def peers(rendered: Rendered, rule: dict[str, Any], side: str) -> list[str]:
    """Return the peers of a rule: components of the release, or all, or words for others."""
    if side not in rule:
        return ["anyone"]
    found = []
    for peer in rule[side]:
        if "ipBlock" in peer:
            found.append(peer["ipBlock"]["cidr"])
        elif "namespaceSelector" in peer:
            found.append(next(iter(peer["namespaceSelector"]["matchLabels"].values())))
        elif peer["podSelector"] == {}:
            found.append("namespace")
        else:
            found += [
                pod.component for pod in rendered.pods() if selects(peer["podSelector"], pod.labels)
            ]
    return found


def flows(rendered: Rendered, direction: str, side: str) -> set[tuple[str, str, int]]:
    """Return (component, peer, port) for what the policies let through; 0 is any port."""
    found = set()
    for policy in rendered.of("NetworkPolicy"):
        component = policy["metadata"]["labels"]["app.kubernetes.io/component"]
        for rule in policy["spec"].get(direction, []):
            for peer in peers(rendered, rule, side):
                for port in rule.get("ports", [{"port": 0}]):
                    found.add((component, peer, port["port"]))
    return found


ROLES = ("scp", *STAGES, "api")


def wanted_egress(to_servers: bool) -> set[Flow]:
    """Return the flows of an installation with built-in servers, or with others and a hook."""
    found = {(role, "anyone", 53) for role in (*ROLES, "flower", "operator", "echo")}
    if to_servers:
        found |= {(role, "redis", 6379) for role in (*ROLES, "flower")}
        found |= {(role, "postgresql", 5432) for role in (*ROLES, "operator")}
        found |= {("passwords", "anyone", port) for port in (53, 443, 6443)}
    else:
        found |= {(role, "anyone", 6380) for role in (*ROLES, "flower")}
        found |= {(role, "anyone", 5433) for role in (*ROLES, "operator", "migrate")}
        found |= {("migrate", "anyone", 53)}
    return found | {
        ("operator", "anyone", 443),
        ("operator", "anyone", 6443),
        ("echo", "scp", 11112),
    }


def test_only_what_is_needed_flows_in_a_small_installation() -> None:
    """By default each role reaches its servers, and only the export stage goes anywhere else."""
    rendered = case("default")

    assert flows(rendered, "egress", "to") == wanted_egress(to_servers=True) | {
        ("export", "anyone", 0)
    }
    ingress = {(role, "monitoring", 9090) for role in ("scp", *STAGES, "operator")}
    ingress |= {("api", "namespace", 5000), ("api", "monitoring", 5000)}
    ingress |= {("flower", "namespace", 5555)}
    ingress |= {("redis", role, 6379) for role in (*ROLES, "flower")}
    ingress |= {("postgresql", role, 5432) for role in (*ROLES, "operator")}
    assert flows(rendered, "ingress", "from") == ingress | {("scp", "anyone", 11112)}


def test_only_what_is_needed_flows_in_a_large_installation() -> None:
    """Senders and destinations are those of the values, and KEDA may ask the API."""
    rendered = case("hospital")

    assert flows(rendered, "egress", "to") == wanted_egress(to_servers=False) | {
        ("export", "10.30.0.0/16", 0)
    }
    inward = flows(rendered, "ingress", "from")
    assert {flow for flow in inward if flow[0] == "scp"} == {
        ("scp", "monitoring", 9090),
        ("scp", "10.20.0.0/16", 11112),
        ("scp", "echo", 11112),
    }
    assert ("api", "keda", 5000) in inward


@every_case
def test_everything_is_closed_by_default(name: str) -> None:
    """Each pod is under a policy that closes both directions, unless policies are switched off."""
    rendered = case(name)
    policies = rendered.of("NetworkPolicy")
    if name == "bare":
        assert policies == []
        return
    for pod in rendered.pods():
        over = [p for p in policies if selects(p["spec"]["podSelector"], pod.labels)]
        assert [p["spec"]["policyTypes"] for p in over] == [["Ingress", "Egress"]]


@every_case
def test_what_one_side_sends_the_other_takes(name: str) -> None:
    """Between the release's own components a flow is open at both ends or at none."""
    rendered = case(name)
    components = {pod.component for pod in rendered.pods()}
    out = {flow for flow in flows(rendered, "egress", "to") if flow[1] in components}
    into = flows(rendered, "ingress", "from")
    for source, target, port in out:
        assert {(target, source, port), (target, "anyone", port)} & into
    for target, source, port in into:
        if source in components:
            assert (source, target, port) in out


def test_pipelines_go_nowhere_unless_they_are_let() -> None:
    """The pool that runs other people's software reaches only what the values allow."""
    rule = {"to": [{"ipBlock": {"cidr": "10.9.0.0/24"}}], "ports": [{"port": 8000}]}
    rendered = render({"networkPolicy": {"to": {"pipelines": [rule]}}})

    assert ("pipeline", "10.9.0.0/24", 8000) in flows(rendered, "egress", "to")
    assert {flow[0] for flow in flows(rendered, "egress", "to") if flow[2] == 8000} == {"pipeline"}
