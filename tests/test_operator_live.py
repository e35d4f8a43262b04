# SPDX-License-Identifier: Apache-2.0
"""From `kubectl` to the receivers: custom resources decide about associations, live."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from adapter.core import Adapter
from adapter.ledger import configuration
from adapter.models import EntityKind
from adapter.operator import Operator
from adapter.scp import Scp
from adapter.settings import Settings
from tests import support_wire as wire
from tests.support_kubernetes import Kubectl, for_operator, some_cluster
from tests.support_scp import call, incoming, running, wheel_file, with_scp
from tests.support_waiting import eventually
from tests.test_scp_processes import processes

LUNG = {"processorSettings": {"pipeline-lung": "lung-1"}}
#: Seconds within which a change is promised to be in force everywhere.
PROMISE = 2.0


@pytest.fixture
def kubectl(tmp_path: Path) -> Iterator[Kubectl]:
    with some_cluster(tmp_path) as found:
        yield found


@pytest.fixture
def operator(
    adapter: Adapter, settings: Settings, kubectl: Kubectl, tmp_path: Path
) -> Iterator[Operator]:
    running = Operator(for_operator(settings, kubectl, tmp_path / "operator"))
    running.start()
    yield running
    running.stop()


def send(scp: Scp, calling: str, called: str) -> tuple[int, int, str]:
    """Send three instances by storescu: its exit code, the successes, and why it was refused."""
    files = [wheel_file(f"{name}.dcm") for name in ("CT_small", "MR_small", "rtplan")]
    arguments = ("-aet", calling, "-aec", called, "-R", "+sd", "--", *files)
    code, lines = call("storescu", scp, *arguments)
    reasons = [line.removeprefix("F: Reason: ") for line in lines if line.startswith("F: Reason")]
    stored = sum("Received Store Response (Success)" in line for line in lines)
    return code, stored, reasons[0] if reasons else ""


def counts(adapter: Adapter) -> tuple[int, ...]:
    """How many AE titles, sources and destinations are in force."""
    return tuple(len(configuration.current(adapter.ledger, kind)) for kind in EntityKind)


UNKNOWN_CALLING = (1, 0, "Calling AE Title Not Recognized")
UNKNOWN_CALLED = (1, 0, "Called AE Title Not Recognized")
STORED = (0, 3, "")


@pytest.mark.needs("dcmtk")
def test_live_configuration_step_by_step(
    adapter: Adapter, settings: Settings, operator: Operator, kubectl: Kubectl
) -> None:
    """Each resource that comes, changes or goes shows in the next association, and nothing else.

    The original's case of live configuration (reference section 4, T12).
    """
    with running(with_scp(settings)) as scp:

        def in_force(*expected: int) -> None:
            eventually(lambda: counts(adapter) == expected)
            version = configuration.latest_version(adapter.ledger)
            eventually(lambda: scp.acceptor._configuration.snapshot.version == version)

        # None configured.
        assert send(scp, "PACS1", "Clara1") == UNKNOWN_CALLING
        # A source only.
        kubectl.create("Source", "pacs-1", aeTitle="PACS1", hostIp=["127.0.0.1"])
        in_force(0, 1, 0)
        assert send(scp, "PACS1", "Clara1") == UNKNOWN_CALLED
        # And an AE title.
        kubectl.create("ClaraAeTitle", "clara-1", aeTitle="Clara1", **LUNG)
        in_force(1, 1, 0)
        assert send(scp, "PACS1", "Clara1") == STORED
        assert len(incoming(adapter)) == 3
        # A second source.
        kubectl.create("Source", "pacs-2", aeTitle="PACS2", hostIp=["127.0.0.1"])
        in_force(1, 2, 0)
        assert [send(scp, name, "Clara1") for name in ("PACS1", "PACS2")] == [STORED, STORED]
        # Without the first source.
        kubectl.delete("Source", "pacs-1")
        in_force(1, 1, 0)
        assert send(scp, "PACS1", "Clara1") == UNKNOWN_CALLING
        assert send(scp, "PACS2", "Clara1") == STORED
        # Another AE title instead.
        kubectl.delete("ClaraAeTitle", "clara-1")
        kubectl.create("ClaraAeTitle", "clara-2", aeTitle="Clara2", **LUNG)
        eventually(lambda: configuration.find(adapter.ledger, EntityKind.AE_TITLE, "Clara2"))
        in_force(1, 1, 0)
        assert send(scp, "PACS2", "Clara1") == UNKNOWN_CALLED
        assert send(scp, "PACS2", "Clara2") == STORED
        # Destinations, which every worker reads from the ledger for each task.
        for number in range(3):
            name = f"dest-{number}"
            spec = {"name": name, "aeTitle": "STORESCP", "hostIp": "127.0.0.1", "port": 11112}
            kubectl.create("Destination", name, **spec)
        in_force(1, 1, 3)
        kubectl.delete("Destination", "dest-0")
        kubectl.delete("Destination", "dest-2")
        in_force(1, 1, 1)
        assert configuration.find(adapter.ledger, EntityKind.DESTINATION, "dest-1")
        assert len(incoming(adapter)) == 15
    assert operator.problem == []


def test_a_change_is_in_force_in_every_receiver_within_two_seconds(
    adapter: Adapter, settings: Settings, operator: Operator, kubectl: Kubectl
) -> None:
    """Edited by kubectl, a source is refused by all processes, and accepted again, in 2 s.

    The median of six changes, so that a machine with much else to do tells the truth too.
    """
    kubectl.create("Source", "ct1", aeTitle="CT1", hostIp=["127.0.0.1"])
    kubectl.becomes("Source", "ct1", "Applied")
    with processes(settings) as found:

        def answers() -> set[bytes]:
            """What the processes say to eight associations that are asked for at once."""
            with found.calls(8) as callers:
                return {caller.associate(calling=b"CT1")[:1] for caller in callers}

        def seconds_until(expected: bytes, change: Callable[[], None]) -> float:
            change()
            began = time.monotonic()
            eventually(lambda: answers() == {expected})
            return time.monotonic() - began

        eventually(lambda: answers() == {b"\2"})
        taken = []
        for _ in range(3):
            for address, expected in (("10.9.9.9", b"\3"), ("127.0.0.1", b"\2")):
                taken.append(
                    seconds_until(
                        expected,
                        lambda address=address: kubectl.edit("Source", "ct1", hostIp=[address]),
                    )
                )

    assert statistics.median(taken) < PROMISE, taken
    assert operator.problem == []


def test_an_association_under_way_keeps_the_configuration_it_began_with(
    adapter: Adapter, settings: Settings, operator: Operator, kubectl: Kubectl
) -> None:
    """Its AE title and its source are deleted meanwhile: it goes on storing, others are refused."""
    kubectl.create("ClaraAeTitle", "adapter", aeTitle="ADAPTER", **LUNG)
    kubectl.create("Source", "modality", aeTitle="MODALITY", hostIp=["127.0.0.1"])
    kubectl.becomes("ClaraAeTitle", "adapter", "Applied")
    kubectl.becomes("Source", "modality", "Applied")
    version = configuration.current(adapter.ledger, EntityKind.AE_TITLE)[0].version
    with running(with_scp(settings)) as scp, ExitStack() as stack:
        caller = stack.enter_context(wire.Caller(scp.port))
        assert caller.associate()[:1] == b"\2"

        kubectl.delete("ClaraAeTitle", "adapter")
        kubectl.delete("Source", "modality")

        def refused() -> bool:
            with wire.Caller(scp.port) as other:
                return other.associate() == wire.reject(1, 1, 3)

        eventually(refused)
        caller.send(wire.message(wire.CT, wire.store_command(), wire.data_set()))
        assert caller.status() == 0
        assert caller.release()
    (file,) = incoming(adapter)
    assert file.stem.endswith(f"-v{version}")
