# SPDX-License-Identifier: Apache-2.0
"""Custom resources are applied to the ledger, and told what came of them.

Runs on our own API server, and on a real one where ADAPTER_TEST_KUBECONFIG names it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapter.core import Adapter
from adapter.errors import ConfigurationError
from adapter.ledger import configuration
from adapter.models import AETitle, EntityKind
from adapter.operator import Operator
from adapter.settings import Settings
from tests.support_kubernetes import Kubectl, for_operator, some_cluster
from tests.support_scp import add_ae_title, add_source
from tests.support_waiting import eventually

pytestmark = pytest.mark.every_ledger

CT = {"aeTitle": "CT-AI", "processorSettings": {"pipeline-ct": "lung"}}


@pytest.fixture
def kubectl(tmp_path: Path) -> Iterator[Kubectl]:
    with some_cluster(tmp_path) as found:
        yield found


@pytest.fixture
def operator_settings(settings: Settings, kubectl: Kubectl, tmp_path: Path) -> Settings:
    return for_operator(settings, kubectl, tmp_path / "operator")


@pytest.fixture
def operator(adapter: Adapter, operator_settings: Settings) -> Iterator[Operator]:
    running = Operator(operator_settings)
    running.start()
    yield running
    running.stop()


def entities(adapter: Adapter, kind: EntityKind) -> dict[str, Any]:
    return {found.entity.key: found for found in configuration.current(adapter.ledger, kind)}


def test_a_custom_resource_is_in_force_and_knows_it(
    adapter: Adapter, operator: Operator, kubectl: Kubectl
) -> None:
    """A resource of each kind becomes an entity it owns; its status names the version."""
    kubectl.create("ClaraAeTitle", "ct", **CT)
    kubectl.create("Source", "ct1", aeTitle="CT1", hostIp=["10.0.0.7", "10.1.0.0/16"])
    kubectl.create("Destination", "pacs", name="PACS", aeTitle="ARC", hostIp="10.0.0.9", port=104)

    for kind, name, key, entity in (
        ("ClaraAeTitle", "ct", "CT-AI", EntityKind.AE_TITLE),
        ("Source", "ct1", "CT1", EntityKind.SOURCE),
        ("Destination", "pacs", "PACS", EntityKind.DESTINATION),
    ):
        message = kubectl.becomes(kind, name, "Applied")
        found = entities(adapter, entity)[key]
        assert found.owner == f"kubernetes:{kubectl.namespace}/{kind}/{name}"
        assert message == f"in force as version {found.version}"
        status = kubectl.get(kind, name)["status"]
        assert status["version"] == found.version
        assert status["observedGeneration"] == 1
    assert operator.problem == []


def test_an_edit_makes_a_new_version(
    adapter: Adapter, operator: Operator, kubectl: Kubectl
) -> None:
    """A changed spec is a new version; the condition stays as old as it is."""
    kubectl.create("ClaraAeTitle", "ct", **CT)
    kubectl.becomes("ClaraAeTitle", "ct", "Applied")
    before = kubectl.get("ClaraAeTitle", "ct")["status"]
    time.sleep(1.1)  # times of conditions have whole seconds

    kubectl.edit("ClaraAeTitle", "ct", processorSettings={"timeout": "30"})

    kubectl.becomes("ClaraAeTitle", "ct", "Applied")
    after = kubectl.get("ClaraAeTitle", "ct")["status"]
    found = entities(adapter, EntityKind.AE_TITLE)["CT-AI"]
    assert found.entity.processor_settings == {"pipeline-ct": "lung", "timeout": "30"}
    assert after["version"] == found.version > before["version"]
    assert after["observedGeneration"] == 2
    (old,), (new,) = before["conditions"], after["conditions"]
    assert new["lastTransitionTime"] == old["lastTransitionTime"]
    assert operator.problem == []


def test_another_name_is_another_entity_and_the_old_one_goes(
    adapter: Adapter, operator: Operator, kubectl: Kubectl
) -> None:
    """Renamed in its spec, a resource has one entity still."""
    kubectl.create("Source", "ct1", aeTitle="CT1", hostIp=["10.0.0.7"])
    kubectl.becomes("Source", "ct1", "Applied")

    kubectl.edit("Source", "ct1", aeTitle="CT2")

    kubectl.becomes("Source", "ct1", "Applied")
    assert list(entities(adapter, EntityKind.SOURCE)) == ["CT2"]
    assert operator.problem == []


def test_two_resources_swap_their_ae_titles(
    adapter: Adapter, operator: Operator, kubectl: Kubectl
) -> None:
    """What is in force is judged as a whole: neither is in the other's way."""
    kubectl.create("ClaraAeTitle", "one", name="one", **CT)
    kubectl.create("ClaraAeTitle", "two", name="two", **{**CT, "aeTitle": "MR-AI"})
    kubectl.becomes("ClaraAeTitle", "one", "Applied")
    kubectl.becomes("ClaraAeTitle", "two", "Applied")

    kubectl.edit("ClaraAeTitle", "one", aeTitle="MR-AI")
    kubectl.edit("ClaraAeTitle", "two", aeTitle="CT-AI")

    def swapped() -> bool:
        found = entities(adapter, EntityKind.AE_TITLE)
        return {key: one.entity.ae_title for key, one in found.items()} == {
            "one": "MR-AI",
            "two": "CT-AI",
        }

    eventually(swapped)
    kubectl.becomes("ClaraAeTitle", "one", "Applied")
    kubectl.becomes("ClaraAeTitle", "two", "Applied")
    assert operator.problem == []


def test_a_deleted_resource_takes_its_entity_with_it(
    adapter: Adapter, operator: Operator, kubectl: Kubectl
) -> None:
    """The entity goes with the resource that owns it; what people entered stays."""
    add_source(adapter, "OURS")
    kubectl.create("Source", "ct1", aeTitle="CT1", hostIp=["10.0.0.7"])
    kubectl.becomes("Source", "ct1", "Applied")

    kubectl.delete("Source", "ct1")

    eventually(lambda: list(entities(adapter, EntityKind.SOURCE)) == ["OURS"])
    assert operator.problem == []


def test_what_happened_while_no_operator_ran_is_caught_up(
    adapter: Adapter, operator_settings: Settings, kubectl: Kubectl
) -> None:
    """An operator that starts applies what is new and removes what is gone."""
    first = Operator(operator_settings)
    first.start()
    kubectl.create("Source", "old", aeTitle="OLD", hostIp=["10.0.0.7"])
    kubectl.becomes("Source", "old", "Applied")
    first.stop()
    kubectl.delete("Source", "old")
    kubectl.create("Source", "new", aeTitle="NEW", hostIp=["10.0.0.7"])

    second = Operator(operator_settings)
    second.start()

    eventually(lambda: list(entities(adapter, EntityKind.SOURCE)) == ["NEW"])
    second.stop()


def test_what_the_adapter_cannot_use_is_told_to_its_author(
    adapter: Adapter, operator: Operator, kubectl: Kubectl
) -> None:
    """What only the adapter knows to be wrong stands in the status, every problem of it."""
    kubectl.create("Source", "ct1", aeTitle="CT1", hostIp=["10.0.0.777"])
    kubectl.create("ClaraAeTitle", "ct", aeTitle="CT-AI", processor="other")

    message = kubectl.becomes("Source", "ct1", "Invalid")
    assert message.startswith("hostIp: '10.0.0.777' is not an IP address")
    message = kubectl.becomes("ClaraAeTitle", "ct", "Invalid")
    assert message == "processor: 'other' is none of ae-title"
    assert "version" not in kubectl.get("ClaraAeTitle", "ct")["status"]
    assert entities(adapter, EntityKind.SOURCE) == {}

    kubectl.edit("Source", "ct1", hostIp=["10.0.0.77"])
    kubectl.becomes("Source", "ct1", "Applied")
    assert operator.problem == []


def test_a_pipeline_that_does_not_exist_is_told(
    adapter: Adapter, operator: Operator, kubectl: Kubectl
) -> None:
    """The AE title is in force, since a refusal would be final for its senders, but not Ready."""
    kubectl.create("ClaraAeTitle", "ct", aeTitle="CT-AI", processorSettings={"pipeline-a": "liver"})

    message = kubectl.becomes("ClaraAeTitle", "ct", "UnknownPipeline")

    version = entities(adapter, EntityKind.AE_TITLE)["CT-AI"].version
    assert message == (
        f"in force as version {version}; the settings have no pipeline 'liver', so its jobs will "
        "be parked; there are: lung, lung-1"
    )
    status = kubectl.get("ClaraAeTitle", "ct")["status"]
    assert (status["version"], status["conditions"][0]["status"]) == (version, "False")
    kubectl.edit("ClaraAeTitle", "ct", processorSettings={"pipeline-a": "lung"})
    kubectl.becomes("ClaraAeTitle", "ct", "Applied")


def test_a_bad_edit_leaves_the_last_good_version_in_force(
    adapter: Adapter, operator: Operator, kubectl: Kubectl
) -> None:
    """Who mistypes an address takes no modality down, and is told so."""
    kubectl.create("Source", "ct1", aeTitle="CT1", hostIp=["10.0.0.7"])
    kubectl.becomes("Source", "ct1", "Applied")
    version = entities(adapter, EntityKind.SOURCE)["CT1"].version

    kubectl.edit("Source", "ct1", hostIp=["10.0.0.777"])

    message = kubectl.becomes("Source", "ct1", "Invalid")
    assert message.endswith(f"its former version {version} stays in force")
    assert entities(adapter, EntityKind.SOURCE)["CT1"].version == version
    assert kubectl.get("Source", "ct1")["status"]["version"] == version
    assert operator.problem == []


@pytest.mark.parametrize("spec", [{}, {"name": "another"}], ids=["name", "AE title"])
def test_the_older_of_two_resources_wins_and_the_other_takes_over(
    adapter: Adapter, operator: Operator, kubectl: Kubectl, spec: dict[str, Any]
) -> None:
    """The same name, or the same AE title: the first keeps it, and leaves it to the second."""
    kubectl.create("ClaraAeTitle", "first", **CT)
    kubectl.becomes("ClaraAeTitle", "first", "Applied")
    time.sleep(1.1)  # times of creation have whole seconds
    kubectl.create("ClaraAeTitle", "a-second", **CT, **spec)

    message = kubectl.becomes("ClaraAeTitle", "a-second", "Conflict")

    assert f"taken by the custom resource ClaraAeTitle {kubectl.namespace}/first" in message
    (found,) = entities(adapter, EntityKind.AE_TITLE).values()
    assert found.owner.endswith("/first")

    kubectl.delete("ClaraAeTitle", "first")
    kubectl.becomes("ClaraAeTitle", "a-second", "Applied")
    (found,) = entities(adapter, EntityKind.AE_TITLE).values()
    assert found.owner.endswith("/a-second")
    assert operator.problem == []


def test_what_people_entered_is_never_taken_over(
    adapter: Adapter, operator: Operator, kubectl: Kubectl
) -> None:
    """An entity of the command line stays as it is, until people remove it."""
    version = add_ae_title(adapter, "CT-AI")
    kubectl.create("ClaraAeTitle", "ct", **CT)

    message = kubectl.becomes("ClaraAeTitle", "ct", "Conflict")

    assert "'CT-AI' is taken by people (command line or REST)" in message
    assert "dicom-adapter aet list" in message
    assert entities(adapter, EntityKind.AE_TITLE)["CT-AI"].version == version

    configuration.remove(adapter.ledger, EntityKind.AE_TITLE, "CT-AI")
    kubectl.becomes("ClaraAeTitle", "ct", "Applied")
    assert operator.problem == []


def test_what_a_custom_resource_manages_is_changed_there_only(
    adapter: Adapter, operator: Operator, kubectl: Kubectl
) -> None:
    """Neither command line nor REST changes or removes it; both say where to do that."""
    kubectl.create("ClaraAeTitle", "ct", **CT)
    kubectl.becomes("ClaraAeTitle", "ct", "Applied")
    entity = AETitle.model_validate({**CT, "resend": "rerun"})
    ledger = adapter.ledger

    for attempt in (
        lambda: configuration.put(ledger, EntityKind.AE_TITLE, entity, replace=True),
        lambda: configuration.put(ledger, EntityKind.AE_TITLE, entity, replace=False),
        lambda: configuration.remove(ledger, EntityKind.AE_TITLE, "CT-AI"),
    ):
        with pytest.raises(ConfigurationError) as refused:
            attempt()
        assert (
            f"kubectl edit --namespace {kubectl.namespace} claraaetitle.dicom.adapter.io/ct"
        ) in str(refused.value)
    assert entities(adapter, EntityKind.AE_TITLE)["CT-AI"].entity.resend == "ignore"
    assert operator.problem == []


@pytest.mark.every_ledger
def test_two_operators_do_no_harm(
    adapter: Adapter, operator_settings: Settings, kubectl: Kubectl
) -> None:
    """Replicas agree without a leader: each change is one version, and the status is stable."""
    both = [Operator(operator_settings) for _ in range(2)]
    for one in both:
        one.start()
    for number in range(8):
        kubectl.create("Source", f"ct{number}", aeTitle=f"CT{number}", hostIp=["10.0.0.7"])
    for number in range(8):
        kubectl.becomes("Source", f"ct{number}", "Applied")
    kubectl.edit("Source", "ct3", hostIp=["10.0.0.8"])
    kubectl.becomes("Source", "ct3", "Applied")
    kubectl.delete("Source", "ct4")
    eventually(lambda: len(entities(adapter, EntityKind.SOURCE)) == 7)

    # Nobody goes on writing.
    settled = _stable(lambda: [kubectl.get("Source", name) for name in kubectl.names("Source")])
    found = entities(adapter, EntityKind.SOURCE)
    assert {item["spec"]["aeTitle"]: item["status"]["version"] for item in settled} == {
        key: one.version for key, one in found.items()
    }
    for one in both:
        assert one.problem == []
        one.stop()


def _stable(look: Any) -> Any:
    def twice() -> Any:
        before = look()
        time.sleep(1.5)  # longer than any period of the operator
        return before if look() == before else None

    return eventually(twice)
