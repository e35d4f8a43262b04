# SPDX-License-Identifier: Apache-2.0
"""What the SCP tells of itself, over all its processes and whatever becomes of them."""

from __future__ import annotations

import os
import re
import signal
import threading
from pathlib import Path

import pytest

from adapter.dicom import statuses
from adapter.scp import metrics as metrics_module
from adapter.scp.metrics import BOUNDS, REJECTIONS, STATUSES, ProcessMetrics, ScpCollector
from adapter.scp.shared_counters import SharedCounters
from tests import support_wire as wire
from tests.support_metrics import ask, scrape
from tests.support_waiting import eventually
from tests.test_scp_processes import Processes, free_port, processes

SCP = Path(metrics_module.__file__).parent


@pytest.fixture
def port():
    return free_port()


def store(caller, number, data_set=None):
    uid = f"1.2.3.{number}"
    data_set = wire.data_set(uid) if data_set is None else data_set
    caller.send(wire.message(wire.CT, wire.store_command(uid), data_set))
    return caller.status()


def instances(found, status="0000"):
    return found.value("dicom_adapter_instances_total", called_ae_title="ADAPTER", status=status)


# -- real processes --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2])
def test_what_is_received_is_told(settings, port, number):
    """Instances by status, bytes, times, associations: the sum over the processes, exactly."""
    with processes(settings, metrics_port=port, processes=number) as found:
        before = scrape(port)
        with found.calls(6) as callers:
            assert all(caller.associate()[:1] == b"\2" for caller in callers)
            eventually(lambda: scrape(port).value("dicom_adapter_active_associations") == 6)
            for at, caller in enumerate(callers):
                assert store(caller, at) == 0x0000
                assert store(caller, at, b"") == 0xC000
                assert caller.release()
        with found.call() as stranger:
            assert stranger.associate(calling=b"NOBODY")[:1] != b"\2"
        after = scrape(port)

        assert (instances(after), instances(after, "C000"), instances(after, "A700")) == (6, 6, 0)
        size = len(wire.data_set("1.2.3.0"))
        name = "dicom_adapter_received_bytes_total"
        assert after.value(name, called_ae_title="ADAPTER") == 6 * size
        assert after.value("dicom_adapter_store_seconds_count") == 12
        assert after.value("dicom_adapter_store_seconds_bucket", le="+Inf") == 12
        assert 0 < after.value("dicom_adapter_store_seconds_sum") < 12 * 5
        accepted = "dicom_adapter_associations_accepted_total"
        grown = after.value(accepted, called_ae_title="ADAPTER") - before.value(
            accepted, called_ae_title="ADAPTER"
        )
        assert grown == 6
        rejected = "dicom_adapter_associations_rejected_total"
        assert after.value(rejected, reason="unknown-calling-ae") == 1
        eventually(lambda: scrape(port).value("dicom_adapter_active_associations") == 0)
        assert after.value("dicom_adapter_association_limit") == 25
        assert after.value("dicom_adapter_receiving_processes") == number
        assert after.value("dicom_adapter_heartbeat_age_seconds", role="scp") < 5
        assert "NOBODY" not in ask(port, "/metrics")[1]


def test_no_counter_goes_back_when_a_process_dies(settings, port):
    """SIGKILL of a receiving process: what it counted stays, and its successor counts on."""
    with processes(settings, metrics_port=port) as found:
        counted = 0

        def store_some():
            nonlocal counted
            with found.calls(4) as callers:
                for at, caller in enumerate(callers):
                    assert caller.associate()[:1] == b"\2"
                    assert store(caller, counted + at) == 0x0000
                    assert caller.release()
            counted += 4

        store_some()
        for pid in found.children():
            os.kill(pid, signal.SIGKILL)  # what answers for metrics, too
        eventually(found.answers)
        eventually(lambda: _answers(port))
        store_some()

        assert instances(scrape(port)) == counted
        eventually(lambda: scrape(port).value("dicom_adapter_receiving_processes") == 2)


def _answers(port):
    try:
        return ask(port, "/live")[0] == 200
    except OSError:
        return False


def test_it_lives_and_is_ready_without_ledger_and_redis(settings, port):
    """Neither probe, nor the metrics, need anything but the receiver itself."""
    with processes(settings):  # makes spool, ledger and configuration
        pass
    ledger = settings.data / "ledger.sqlite"
    for path in settings.data.glob("ledger.sqlite*"):
        path.unlink()
    ledger.mkdir()
    nowhere = {"DICOMADAPTER__BROKER__URL": "redis://127.0.0.1:1/0"}
    found = Processes(settings, metrics_port=port, more=nowhere)
    try:
        eventually(found.answers, timeout=20)

        assert ask(port, "/live") == (200, "live\n")
        eventually(lambda: ask(port, "/ready") == (200, "ready\n"))
        eventually(lambda: scrape(port).value("dicom_adapter_receiving_processes") == 2)
    finally:
        found.process.terminate()
        found.process.wait(20)


@pytest.mark.parametrize("who", ["one that receives", "the one that forks"])
def test_a_process_that_hangs_is_seen(settings, port, who):
    """One process that no longer runs, and the SCP is not live; it is, as soon as it goes on."""
    first = "from adapter import heartbeat; heartbeat.DEAD_SECONDS = 2.5; "
    with processes(settings, metrics_port=port, first=first) as found:
        assert ask(port, "/live")[0] == 200
        pid = found.process.pid if who == "the one that forks" else found.children()[0]
        os.kill(pid, signal.SIGSTOP)
        try:
            eventually(lambda: ask(port, "/live")[0] == 503, timeout=10)
            assert re.fullmatch(r"no heartbeat for \d+ s\n", ask(port, "/live")[1])
        finally:
            os.kill(pid, signal.SIGCONT)
        eventually(lambda: ask(port, "/live")[0] == 200)


def test_it_is_not_ready_while_it_stops(settings, port):
    """From SIGTERM on no new associations: not ready; live until the last one has ended."""
    with processes(settings, metrics_port=port, stop_seconds=20) as found, found.call() as caller:
        assert caller.associate()[:1] == b"\2"
        eventually(lambda: ask(port, "/ready")[0] == 200)

        found.process.terminate()

        eventually(lambda: ask(port, "/ready") == (503, "nobody listens\n"))
        assert ask(port, "/live")[0] == 200
        assert store(caller, 1) == 0x0000
        assert instances(scrape(port)) == 1
        assert caller.release()
        assert found.process.wait(10) == 0
    assert not _answers(port)


def test_what_answers_for_metrics_does_not_outlive_the_scp(settings, port):
    """SIGKILL of the process that forks: the port of metrics is free for the next."""
    with processes(settings, metrics_port=port) as found:
        found.process.kill()
        found.process.wait()
        with processes(settings, metrics_port=port):
            assert ask(port, "/live")[0] == 200


def test_a_taken_port_stops_the_start(settings, port):
    """The SCP does not run without the metrics it was told to serve."""
    with processes(settings, metrics_port=port):
        again = Processes(settings, metrics_port=port)
        assert again.process.wait(20) != 0


# -- the counters -----------------------------------------------------------------------------


def told(counters):
    return {
        (sample.name.removeprefix("dicom_adapter_"), *sample.labels.values()): sample.value
        for family in ScpCollector(counters, 25).collect()
        for sample in family.samples
    }


def test_threads_of_one_process_lose_no_count():
    """Counters that many threads add to are exact."""
    counters = SharedCounters(2)
    counting = ProcessMetrics(counters.process(0))

    def count():
        for _ in range(2000):
            counting.answered("ONE", 0x0000, 3)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert told(counters)["instances_total", "ONE", "0000"] == 16_000
    assert told(counters)["received_bytes_total", "ONE"] == 48_000


def test_processes_share_counters_and_a_successor_counts_on():
    """The parts of two processes are summed; a successor goes on from its part's numbers."""
    counters = SharedCounters(2)
    for turn, number in enumerate((0, 1, 0)):
        pid = os.fork()
        if not pid:
            counting = ProcessMetrics(counters.process(number))
            if turn:  # what a successor counts first need not be what its predecessor did
                counting.ended("released")
            counting.answered("ONE", 0x0000, 10)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0

    assert told(counters)["instances_total", "ONE", "0000"] == 3
    assert told(counters)["received_bytes_total", "ONE"] == 30
    assert told(counters)["associations_ended_total", "released"] == 2


def test_a_process_that_is_gone_has_no_associations():
    """The gauges of a process that died are not told any more; its counters are."""
    counters = SharedCounters(2)
    counters.process(0).set_active(3)
    counters.process(1).set_active(2)
    counters.process(0).set_listening(True)
    ProcessMetrics(counters.process(0)).ended("lost")

    counters.vacate(0)

    assert told(counters)["active_associations",] == 2
    assert told(counters)["receiving_processes",] == 0
    assert told(counters)["associations_ended_total", "lost"] == 1


def test_ae_titles_beyond_the_bound_are_one():
    """However many AE titles there are, and however long they are, the labels are bounded."""
    counters = SharedCounters(1)
    counting = ProcessMetrics(counters.process(0))
    for number in range(metrics_module.MOST_TITLES + 100):
        for status in STATUSES:
            counting.answered(f"T{number:015d}", int(status, 16), None)
        counting.accepted(f"T{number:015d}")
        counting.answered(f"T{number:015d}", 0, 1)

    found = told(counters)
    assert len({key[1] for key in found if key[0] == "instances_total"}) == 201
    assert found["associations_accepted_total", "other"] == 100


def test_a_reason_that_nobody_knows_is_other():
    """Labels come from a fixed set."""
    counters = SharedCounters(1)
    ProcessMetrics(counters.process(0)).rejected("CANARY^NAME")
    assert told(counters)["associations_rejected_total", "other"] == 1
    assert not [key for key in told(counters) if "CANARY^NAME" in key]


def test_every_reason_and_status_of_the_code_is_known():
    """Each cause of a rejection and each status that the SCP answers has a label of its own."""
    sources = "".join(path.read_text() for path in SCP.glob("*.py"))
    causes = set(re.findall(r'Rejection\(\*[\w.]+, "([a-z-]+)"', sources))
    assert "unknown-called-ae" in causes
    assert causes < set(REJECTIONS)
    named = {name for name in vars(statuses) if name.isupper() and name != "ANSWERED"}
    answered = {name for name in named if re.search(rf"\b{name}\b", sources)}
    assert len(answered) == 8
    assert {f"{getattr(statuses, name):04X}" for name in answered} == set(STATUSES)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.0011, 29.9, 30.0, 31.0])
def test_a_time_is_in_every_bucket_that_holds_it(seconds):
    """Buckets are cumulative, and their bounds belong to them."""
    counters = SharedCounters(1)
    ProcessMetrics(counters.process(0)).took(seconds)

    found = told(counters)
    for bound in BOUNDS:
        assert found["store_seconds_bucket", str(bound)] == (seconds <= bound)
    assert found["store_seconds_bucket", "+Inf"] == 1
    assert found["store_seconds_count",] == 1
    assert found["store_seconds_sum",] == pytest.approx(seconds)
