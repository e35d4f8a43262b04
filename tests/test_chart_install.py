# SPDX-License-Identifier: Apache-2.0
"""What Helm does with the chart, in which order: seen by installing into a server of ours.

The server keeps objects and runs nothing: no pod starts in these tests.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest
from helm_python import HelmReleaseError
from redis import Redis
from redis.exceptions import AuthenticationError, RedisError

from adapter.embedded.broker import find_server
from tests.support_chart import CASES, STAGES, Rendered, case, render, values_of
from tests.support_helm_server import HelmServer, plural
from tests.support_stack import free_port
from tests.test_chart_manifests import GIVEN, references

#: A large installation but for the kinds that only other people's software brings.
EXTERNAL = {
    **values_of("hospital"),
    "stageAutoscaling": {},
    "monitoring": {},
    "stages": {},
}


@pytest.fixture
def server():
    server = HelmServer()
    yield server
    server.close()


def first(server: HelmServer, kind: str) -> int:
    """Return when an object of a kind was first written."""
    return next(at for at, (_, of, _) in enumerate(server.changes) if of == kind)


def needs(
    rendered: Rendered, given: AbstractSet[tuple[str, str]] = frozenset()
) -> set[tuple[str, str]]:
    """Return the objects that the migration refers to and that do not exist: plural and name."""
    used = {(kind, name) for kind, name, _ in references(rendered.pod("migrate"))}
    return {(plural(kind), name) for kind, name in used - given}


# -- order -------------------------------------------------------------------------------------


#: Hooks that migrate the built-in database.
HOOKS = {"migrate": {"useHelmHooks": True}}


def test_a_first_install_waits_for_nothing_that_is_not_there_yet(server: HelmServer) -> None:
    """With the built-in PostgreSQL no hook runs at the install, which makes it, but at upgrades."""
    server.install(HOOKS)

    kinds = {kind for _, kind, _ in server.changes}
    assert {"Deployment", "StatefulSet"} <= kinds
    assert not any(name.endswith("-migrate") for _, _, name in server.changes)

    server.changes.clear()
    server.before_jobs.clear()
    server.upgrade({**HOOKS, "settings": {"workers": {"dueWorkPollSeconds": 2}}})

    assert first(server, "Job") < first(server, "Deployment")
    there = server.before_jobs[0]
    made = {("Secret", name) for name in render(HOOKS).created_passwords()}
    assert needs(render(HOOKS), made) <= there


def test_without_being_asked_the_chart_has_no_hooks() -> None:
    """Argo CD makes a PreSync of a hook, and would wait for a database of the same sync."""
    hooks = [
        (item["kind"], item["metadata"]["annotations"]["helm.sh/hook"])
        for name in ("default", "one-node")
        for item in case(name).objects
        if "helm.sh/hook" in (item["metadata"].get("annotations") or {})
    ]

    assert set(hooks) == {("Pod", "test")}


def test_roles_make_the_schema_of_a_new_ledger_but_the_receiver_waits_for_nobody() -> None:
    """Workers and operator wait for the ledger and upgrade it; the SCP has to start without one."""
    for name in ("default", "hospital"):
        for role in (*STAGES, "operator"):
            (waiting,) = case(name).pod(role).spec["initContainers"]
            assert waiting["args"] == ["ledger", "upgrade", "--create-spool"]
            main = case(name).pod(role).main
            for key in ("image", "env", "volumeMounts", "securityContext"):
                assert waiting[key] == main[key]
        for role in ("scp", "api", "flower"):
            assert "initContainers" not in case(name).pod(role).spec


def test_an_external_ledger_is_migrated_before_anything_is_installed(server: HelmServer) -> None:
    """The hook and what it needs come first, at an install and at an upgrade."""
    for change in (server.install, server.upgrade):
        server.changes.clear()
        change(EXTERNAL)
        assert first(server, "Job") < first(server, "Deployment")
    there, later = server.before_jobs
    assert needs(render(EXTERNAL), GIVEN["hospital"]) <= there & later
    assert ("networkpolicies", "pacs-ai-dicom-adapter-migrate") in there
    assert not any(of == "deployments" for of, _ in there)
    # Nothing of the hook stays.
    assert not any(name.endswith("-migrate") for _, name in server.objects)


def test_nothing_runs_after_an_install_that_pods_would_wait_for() -> None:
    """There is no post-install hook: `helm install --wait` would wait for pods before it ran."""
    for name in ("default", "hospital", "one-node"):
        for item in case(name).objects:
            hook = (item["metadata"].get("annotations") or {}).get("helm.sh/hook", "")
            assert "post-" not in hook
            if hook and hook != "test":
                assert set(hook.split(",")) <= {"pre-install", "pre-upgrade"}
                assert item["metadata"]["labels"]["app.kubernetes.io/component"] == "migrate"


# -- what stays --------------------------------------------------------------------------------


def test_an_uninstall_keeps_what_was_promised_and_a_new_install_takes_it_up(
    server: HelmServer,
) -> None:
    """The spool, the passwords and the custom resources outlive the release; all else goes."""
    server.install({})
    (secret,) = render({}).created_passwords()
    server.put({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": secret}})

    server.uninstall()

    assert {of for of, _ in server.objects} == {
        "persistentvolumeclaims",
        "secrets",
        "customresourcedefinitions",
    }
    server.install({})
    assert server.find("Secret", secret)["metadata"]["name"] == secret


@pytest.mark.parametrize("name", CASES)
def test_two_renders_of_the_same_values_are_the_same(name: str) -> None:
    """What is made anew each time would be a difference for ever to GitOps tools."""
    assert render(values_of(name)) == case(name)


def test_a_changed_job_has_another_name() -> None:
    """Kubernetes does not let the pod of a job be changed."""
    names = {
        render(values).pod("passwords").owner["metadata"]["name"]
        for values in ({}, {"image": {"tag": "2"}}, {"flower": {"enabled": False}})
    }
    assert len(names) == 3


def test_a_claim_that_cannot_do_it_is_refused(server: HelmServer) -> None:
    """A claim of one node is not taken for one that all nodes may mount."""
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "images", "namespace": "imaging"},
        "spec": {"accessModes": ["ReadWriteOnce"]},
    }
    server.put(claim)
    with pytest.raises(HelmReleaseError, match=r"images offers ReadWriteOnce"):
        server.install({"spool": {"existingClaim": "images"}})

    server.install({"spool": {"existingClaim": "images", "accessMode": "ReadWriteOnce"}})


@pytest.mark.parametrize("minor", [15, 28])
def test_what_is_too_old_is_refused(server: HelmServer, minor: int) -> None:
    """Helm installs nothing on a release of Kubernetes that the chart is not for."""
    server.minor = minor
    with pytest.raises(HelmReleaseError, match=r"requires kubeVersion: >=1\.29"):
        server.install({})

    assert server.changes == []


# -- the built-in servers ----------------------------------------------------------------------


def test_redis_starts_as_the_chart_says(tmp_path: Path) -> None:
    """The container's own command starts a real server that logs and asks for the password."""
    rendered = case("default")
    port = free_port()
    settings = rendered.find("ConfigMap", "-redis")["data"]["redis.conf"]
    settings = settings.replace("port 6379", f"port {port}").replace("/data", str(tmp_path))
    (tmp_path / "redis.conf").write_text(settings, encoding="utf-8")
    (tmp_path / "redis-password").write_text("s3cret with spaces\n", encoding="utf-8")
    shell, option, script = rendered.pod("redis").main["command"]
    script = script.replace("/etc/redis/", f"{tmp_path}/")
    script = script.replace("/run/secrets/redis/", f"{tmp_path}/")
    binary = find_server()
    assert binary is not None
    (tmp_path / "redis-server").symlink_to(binary)
    path = f"{tmp_path}:/usr/bin:/bin"

    process = subprocess.Popen(
        [shell, option, script], env={"PATH": path}, stdout=subprocess.DEVNULL
    )
    try:
        client = Redis(port=port, password="s3cret with spaces")
        deadline = time.monotonic() + 30
        while True:
            try:
                assert client.ping()
                break
            except RedisError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        with pytest.raises(AuthenticationError):
            Redis(port=port).ping()
        arguments = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert b"redis-server" in arguments, (
            "the shell has to make way: it would not pass signals on"
        )
        assert b"s3cret" not in arguments
    finally:
        process.terminate()
        assert process.wait(20) == 0
