# SPDX-License-Identifier: Apache-2.0
"""Tasks of a remote Results Service: taken in once, exported, and answered for until it knows."""

from __future__ import annotations

import json
import os
import time

import pytest

from adapter.errors import TemporaryError
from adapter.ledger import exports, schema
from adapter.ledger.remote_tasks import Report
from tests.support_exports import (
    add_destination,
    hasten,
    instance_file,
    kinds,
    make_work,
    outcomes,
    rows,
    run,
    run_until,
)
from tests.support_peers import ScriptedPacs, StoreScp
from tests.support_results_service import (
    FakeResultsService,
    answer,
    error,
    garbage,
    hang_up,
    make_task,
    nested,
    not_a_list,
)
from tests.support_stack import free_port
from tests.support_waiting import eventually
from tests.test_store_scu import EIGHT, TEST_FILES, body
from workers.clients.results_service import (
    LedgerResultsService,
    Poller,
    RestResultsService,
    poll,
    results_service,
)
from workers.clients.task import destination_names, path_problem, read_task

pytestmark = pytest.mark.every_ledger


@pytest.fixture
def service():
    """A Results Service without tasks."""
    with FakeResultsService() as running:
        yield running


@pytest.fixture
def remote(adapter, service, tmp_path):
    """An adapter whose tasks come from the Results Service."""
    root = tmp_path / "payloads"
    root.mkdir()
    return hasten(
        adapter,
        services={
            "endpoint": service.endpoint,
            "root": root,
            "request_seconds": 2.0,
            "report_minimum_seconds": 0.1,
            "report_maximum_seconds": 0.4,
            "visibility_seconds": 0.01,
        },
        workers={"due_work_poll_seconds": 0.02},
    )


@pytest.fixture
def pacs(remote):
    """A destination, PACS, that stores everything unless its script is changed."""
    with ScriptedPacs() as peer:
        add_destination(remote, peer.port)
        yield peer


def add_files(adapter, amount):
    """Write small instances under the root; return their SOP Instance UIDs and their uris."""
    root = adapter.settings.services.results_service.root
    uids, uris = [], []
    for _ in range(amount):
        uid, content = instance_file()
        path = root / uid / "image.dcm"
        path.parent.mkdir()
        path.write_bytes(content)
        uids.append(uid)
        uris.append(str(path.relative_to(root)))
    return uids, uris


def polled(adapter, check, seconds=20.0):
    """Poll and export, again and again, until something holds."""
    return run_until(adapter, lambda: (poll(adapter), check())[1], seconds)


def one_task(adapter):
    [row] = rows(adapter, schema.tasks)
    return row


def one_export(adapter):
    [row] = rows(adapter, schema.exports)
    return row


# -- what a task says ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "names"),
    [
        ('"PACS1"', ["PACS1"]),
        ('["orthanc-pacs","modality-viewer-2"]', ["orthanc-pacs", "modality-viewer-2"]),
        (["PACS1", "PACS2"], ["PACS1", "PACS2"]),
        ("PACS1", ["PACS1"]),
        (" PACS1 ", ["PACS1"]),
        ('["PACS1", "pacs1", "PACS2"]', ["PACS1", "PACS2"]),
    ],
)
def test_destinations_of_a_task(parameters, names):
    """A string that holds JSON, one name or an array of them, and the same without the string."""
    assert destination_names(parameters) == names


@pytest.mark.parametrize(
    "parameters",
    ["", "[]", "null", "17", "{}", '{"a": "PACS"}', '[["PACS"]]', "[1]", None, 17, {}, [], [""],
     '"a/b"', '["' + "x" * 65 + '"]', "[" * 100_000],
    ids=repr,
)  # fmt: skip
def test_parameters_that_name_no_destination(parameters):
    """Everything else names none."""
    with pytest.raises(ValueError, match=r"valid|nested|at least"):
        destination_names(parameters)


@pytest.mark.parametrize(
    ("uri", "fine"),
    [
        ("dcm/1/a.dcm", True),
        ("a.dcm", True),
        ("dcm/./a.dcm", True),
        ("..hidden/a..dcm", True),
        ("/etc/passwd", False),
        ("//etc/passwd", False),
        ("../a.dcm", False),
        ("dcm/../../a.dcm", False),
        ("a\0.dcm", False),
        ("a\r\n.dcm", False),
        ("", False),
        (".", False),
        ("x" * 1025, False),
        ("\ud800", False),
    ],
)
def test_uris(uri, fine):
    """A uri is a relative path of printable characters that never climbs."""
    assert (path_problem(uri) is None) is fine


@pytest.mark.parametrize(
    "raw",
    [None, 17, "task", [], {}, {"taskId": None}, {"taskId": 17}, {"taskId": ""},
     {"taskId": ".."}, {"taskId": "a/b"}, {"taskId": "x" * 65}],
)  # fmt: skip
def test_task_without_an_id(raw):
    """What has not even an id cannot be answered for."""
    assert read_task(raw, {"pacs"}, 0.5) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"retries": -1},
        {"retries": "many"},
        {"uris": "a.dcm"},
        {"uris": [17]},
        {"uris": None},
        {"jobId": ["x"]},
        {"jobId": "x" * 65},
    ],
)
def test_malformed_task_has_trouble(changes):
    """A task with an id that makes no sense otherwise is one to report."""
    task = make_task(["a.dcm"]) | changes
    delivery = read_task(task, {"pacs"}, 0.5)
    assert delivery.id == task["taskId"]
    assert delivery.problem


# -- all is well ---------------------------------------------------------------------------------


def test_task_is_exported_once_and_reported_once(remote, service, pacs):
    """A pending task is taken in, exported to each destination, and its success reported once."""
    with ScriptedPacs() as other:
        add_destination(remote, other.port, "OTHER")
        uids, uris = add_files(remote, 5)
        [task] = service.add(make_task(uris, '["PACS", "other"]'))

        assert poll(remote) == 1
        assert poll(remote) == 0
        assert run(remote) == {"succeeded": 2, "reported": 1}

        assert service.reports == [("success", task, None)]
        assert pacs.sent == other.sent == dict.fromkeys(uids, 1)
        assert outcomes(remote) == dict.fromkeys(uids, "stored")
        assert poll(remote) == 0
        assert run(remote) == {}
    assert one_task(remote).report == "reported"
    assert "task-reported" in kinds(remote)


@pytest.mark.needs("dcmtk")
def test_eight_transfer_syntaxes(remote, service, tmp_path):
    """T9: one task of eight files in eight transfer syntaxes is a success, every file as it was."""
    root = remote.settings.services.results_service.root
    for name in EIGHT:
        (root / name).write_bytes((TEST_FILES / name).read_bytes())
    with StoreScp(tmp_path / "pacs", "+xa") as scp:
        add_destination(remote, scp.port, "PACS1")
        [task] = service.add(make_task(list(EIGHT), '"PACS1"'))
        polled(remote, lambda: service.reports)
        assert scp.said("Received Store Request") == 8
        assert {body(path) for path in scp.files()} == {body(root / name) for name in EIGHT}
    assert service.reports == [("success", task, None)]


def test_no_files_is_a_success(remote, service, pacs):
    """A task without uris is a success, as in the original."""
    [task] = service.add(make_task([]))
    polled(remote, lambda: service.reports)
    assert service.reports == [("success", task, None)]
    assert pacs.associations == 0


def test_tasks_that_wait_hide_no_others(remote, service, pacs):
    """W19: more waiting tasks than a page holds do not keep those behind them from being seen."""
    add_destination(remote, free_port(), "AWAY")
    _, uris = add_files(remote, 1)
    service.add(*(make_task(uris, '"AWAY"') for _ in range(25)))
    polled(remote, lambda: len(rows(remote, schema.tasks)) == 25)
    [task] = service.add(make_task(uris))
    polled(remote, lambda: service.reports)
    assert service.reports == [("success", task, None)]
    assert len(service.tasks) == 25


def test_one_page_is_asked_for(remote, service):
    """Ten tasks are asked for, under the name of our agent."""
    poll(remote)
    assert service.requests == [("GET", "/api/tasks/ClaraSCU/pending?size=10")]


# -- failures ------------------------------------------------------------------------------------


@pytest.mark.needs("dcmtk")
def test_peer_that_aborts(remote, service, tmp_path):
    """T10a: a peer that aborts after the store request: failure is reported, success never.

    The peer of the original's test takes no JPEG; here it has to, because nothing is converted.
    """
    (remote.settings.services.results_service.root / "a.dcm").write_bytes(
        (TEST_FILES / "JPEG-lossy.dcm").read_bytes()
    )
    with StoreScp(tmp_path / "pacs", "+xa", "--abort-after") as scp:
        add_destination(remote, scp.port)
        [task] = service.add(make_task(["a.dcm"], retries=3))
        polled(remote, lambda: service.reports)
        assert scp.said("Received Store Request") == 1
        assert scp.said("ABORT initiated (due to command line options)") >= 1
    assert service.reports == [("failure", task, False)]


@pytest.mark.needs("dcmtk")
def test_peer_that_refuses(remote, service, tmp_path):
    """T10b: a peer that refuses: failure, with RetryLater while the task has retries left."""
    (remote.settings.services.results_service.root / "a.dcm").write_bytes(
        (TEST_FILES / "MR_small_RLE.dcm").read_bytes()
    )
    with StoreScp(tmp_path / "pacs", "+x=", "--refuse") as scp:
        add_destination(remote, scp.port)
        [task] = service.add(make_task(["a.dcm"]))
        polled(remote, lambda: len(service.reports) == 4)
        assert scp.said("Received Store Request") == 0
        assert scp.said("Refusing Association (forced via command line)") == 4
    assert service.reports == [("failure", task, True)] * 3 + [("failure", task, False)]
    assert one_export(remote).state == "parked"


@pytest.mark.parametrize("retries", [0, 1, 2, 3, 4])
def test_retry_later_follows_the_tasks_retries(remote, service, pacs, retries):
    """RetryLater is true while the task's own retries are below the maximum; one try a delivery."""
    uids, uris = add_files(remote, 1)
    pacs.answer = lambda _: 0xA700
    service.forgetful = True
    [task] = service.add(make_task(uris, retries=retries))
    poll(remote)
    run(remote)
    assert service.reports == [("failure", task, retries < 3)]
    assert pacs.sent == {uids[0]: 1}
    assert one_export(remote).state == ("pending" if retries < 3 else "parked")
    assert run(remote) == {}


def test_confirmed_files_are_not_sent_again(remote, service, pacs):
    """W10: delivered again after a failure, only what is not confirmed is sent, there alone."""
    with ScriptedPacs() as other:
        add_destination(remote, other.port, "OTHER")
        uids, uris = add_files(remote, 10)
        bad = uids[:6]
        pacs.answer = lambda uid: 0xC000 if uid in bad and pacs.sent[uid] == 1 else 0
        [task] = service.add(make_task(uris, '["PACS", "OTHER"]'))
        polled(remote, lambda: len(service.reports) == 2)
        assert service.reports == [("failure", task, True), ("success", task, None)]
        assert pacs.sent == {uid: 2 if uid in bad else 1 for uid in uids}
        assert other.sent == dict.fromkeys(uids, 1)


@pytest.mark.parametrize(("failing", "verb"), [(5, "success"), (6, "failure")])
def test_half_of_the_files(remote, service, pacs, failing, verb):
    """Exactly half of the files failed is a success, more is a failure."""
    uids, uris = add_files(remote, 10)
    bad = uids[:failing]
    pacs.answer = lambda uid: 0xA700 if uid in bad else 0
    service.add(make_task(uris, retries=3))
    polled(remote, lambda: service.reports)
    assert [report[0] for report in service.reports] == [verb]
    if verb == "success":
        # What is left gets its tries, and what then remains is partial; nothing more is reported.
        run_until(remote, lambda: one_export(remote).state == "partial")
        assert {pacs.sent[uid] for uid in bad} == {4}
        assert len(service.reports) == 1


@pytest.mark.parametrize(
    "parameters", ['"UNKNOWN"', '["PACS", "UNKNOWN"]', "", None, "[]", '{"to": "PACS"}']
)
def test_destination_that_nobody_knows(remote, service, pacs, parameters):
    """Missing, unknown or unreadable destinations: failure for good, recorded, nobody called."""
    _, uris = add_files(remote, 1)
    [task] = service.add(make_task(uris, parameters))
    polled(remote, lambda: service.reports)
    assert service.reports == [("failure", task, False)]
    assert pacs.associations == 0
    assert "task-refused" in kinds(remote)
    assert {row.state for row in rows(remote, schema.exports)} <= {"parked"}


def test_malformed_task_harms_no_other(remote, service, pacs):
    """A malformed task is reported as a failure for good; the others of its page go on."""
    _, uris = add_files(remote, 1)
    bad, good = make_task(uris) | {"uris": 17}, make_task(uris)
    service.add(bad, {"taskId": "a b", "uris": []}, good)
    polled(remote, lambda: len(service.reports) == 2)
    assert sorted(service.reports) == sorted(
        [("failure", bad["taskId"], False), ("success", good["taskId"], None)]
    )


def test_uris_that_lead_elsewhere(remote, service, pacs, tmp_path):
    """No uri is followed up, out or through a link; such a file counts as failed."""
    root = remote.settings.services.results_service.root
    uids, uris = add_files(remote, 6)
    (tmp_path / "secret.dcm").write_bytes(instance_file()[1])
    (root / "link.dcm").symlink_to(tmp_path / "secret.dcm")
    (root / "way").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.dcm")
    bad = ["link.dcm", "way/secret.dcm", "pipe.dcm", "../secret.dcm", str(tmp_path / "secret.dcm"),
           uris[0].removesuffix("/image.dcm")]  # fmt: skip
    service.add(make_task(uris + bad))
    polled(remote, lambda: service.reports)
    assert [report[0] for report in service.reports] == ["success"]
    assert pacs.sent == dict.fromkeys(uids, 1)
    assert one_export(remote).state == "partial"


def test_a_task_whose_uris_lead_elsewhere_is_refused_for_good(remote, service):
    """More than half of its uris can be no files: the first answer is the last, before any try."""
    [task] = service.add(make_task(["../secret.dcm", "a/../../b.dcm", "fine.dcm"]))
    poll(remote)
    row = one_export(remote)
    assert (row.state, row.reason, row.tries) == ("parked", "unfit-files", 0)
    assert row.message == "2 of 3 uris name no file below the root: the path leaves the root"
    run_until(remote, lambda: service.reports)
    assert service.reports == [("failure", task, False)]


@pytest.mark.parametrize("retries", [0, 3])
def test_files_that_are_not_there(remote, service, pacs, retries):
    """T11: files that cannot be had: a failure is reported, nobody is called, life goes on."""
    service.forgetful = True
    [task] = service.add(make_task([f"{number}.dcm" for number in range(8)], retries=retries))
    poll(remote)
    run_until(remote, lambda: service.reports)
    assert service.reports == [("failure", task, retries < 3)]
    assert pacs.associations == 0

    service.tasks.clear()
    uids, uris = add_files(remote, 1)
    [good] = service.add(make_task(uris))
    polled(remote, lambda: ("success", good, None) in service.reports)
    assert pacs.sent == {uids[0]: 1}


def test_task_waits_for_its_destination(remote, service):
    """While its destination cannot be reached a task is neither tried nor reported."""
    port = free_port()
    add_destination(remote, port)
    uids, uris = add_files(remote, 2)
    [task] = service.add(make_task(uris))
    polled(remote, lambda: [hold for hold in rows(remote, schema.holds) if hold.failures >= 2])
    assert service.reports == []
    assert one_export(remote).tries == 0
    with ScriptedPacs(port=port) as pacs:
        polled(remote, lambda: service.reports)
        assert pacs.sent == dict.fromkeys(uids, 1)
    assert service.reports == [("success", task, None)]


def test_report_waits_for_every_destination(remote, service, pacs):
    """A task is reported when each of its destinations has been tried, not before."""
    port = free_port()
    add_destination(remote, port, "AWAY")
    uids, uris = add_files(remote, 1)
    [task] = service.add(make_task(uris, '["PACS", "AWAY"]'))
    polled(remote, lambda: pacs.sent and rows(remote, schema.holds))
    run(remote)
    assert service.reports == []
    with ScriptedPacs(port=port):
        polled(remote, lambda: service.reports)
    assert service.reports == [("success", task, None)]
    assert pacs.sent == {uids[0]: 1}


def test_patience_of_a_task(remote, service):
    """When patience with its destination ends a task has failed."""
    hasty = hasten(remote, export={"destination_patience_seconds": 0.3})
    add_destination(hasty, free_port())
    _, uris = add_files(hasty, 1)
    [task] = service.add(make_task(uris, retries=3))
    polled(hasty, lambda: service.reports)
    assert service.reports == [("failure", task, False)]
    assert one_export(hasty).reason == "destination-unreachable"


# -- reports that are not taken ------------------------------------------------------------------


def hold_on(service):
    return lambda _request: service.closing.wait(30)


@pytest.mark.parametrize("bad_day", [error, hang_up])
def test_report_is_repeated_until_it_is_taken(remote, service, pacs, bad_day):
    """W16: a report that was not taken is kept and repeated; the task is not exported again."""
    uids, uris = add_files(remote, 2)
    [task] = service.add(make_task(uris))
    poll(remote)
    service.bad_days.extend([bad_day] * 3)
    assert run(remote) == {"succeeded": 1, "unreported": 1}
    assert one_task(remote).report == "due"
    run_until(remote, lambda: service.reports)
    puts = [path for verb, path in service.requests if verb == "PUT"]
    assert puts == [f"/api/tasks/success/{task}"] * 4
    assert pacs.sent == dict.fromkeys(uids, 1)
    assert one_task(remote).report == "reported"


def test_repeats_are_bounded_in_rate(remote, service, pacs):
    """The delay between repeats doubles from its minimum to its maximum."""
    slow = hasten(remote, services={"report_minimum_seconds": 10, "report_maximum_seconds": 35})
    _, uris = add_files(slow, 1)
    service.add(make_task(uris))
    poll(slow)
    service.bad_days.extend([error] * 4)
    delays = []
    for _ in range(4):
        run(slow)
        delays.append(round(one_task(slow).report_due_at - slow.ledger.now()))
        with slow.ledger.write() as connection:
            connection.execute(schema.tasks.update().values(report_due_at=schema.now()))
    assert delays == [10, 20, 35, 35]


def test_service_that_hangs_costs_its_deadline(remote, service, pacs):
    """A Results Service that does not answer holds a worker for its deadline, once in a run."""
    hasty = hasten(remote, services={"request_seconds": 0.5, "report_minimum_seconds": 0.01})
    uids, uris = add_files(hasty, 1)
    for _ in range(3):
        service.add(make_task(uris))
    poll(hasty)
    service.bad_days.extend([hold_on(service)] * 10)
    start = time.monotonic()
    done = run(hasty)
    assert time.monotonic() - start < 2
    assert done == {"succeeded": 3, "unreported": 1}
    assert pacs.sent[uids[0]] == 3


def test_service_that_trickles(remote, service):
    """An answer that comes byte by byte ends at the deadline too."""
    hasty = hasten(remote, services={"request_seconds": 0.5})

    def trickle(request):
        request.send_response(200)
        request.end_headers()
        while not service.closing.wait(0.1):
            request.wfile.write(b" ")
            request.wfile.flush()

    service.bad_days.append(trickle)
    start = time.monotonic()
    with pytest.raises(TemporaryError, match=r"did not answer in 0\.5 s"):
        poll(hasty)
    assert time.monotonic() - start < 2


def test_forgetful_service_is_told_again(remote, service, pacs):
    """A task that is still named pending after its report is reported again, never exported."""
    service.forgetful = True
    uids, uris = add_files(remote, 1)
    [task] = service.add(make_task(uris))
    polled(remote, lambda: len(service.reports) >= 3)
    assert set(service.reports) == {("success", task, None)}
    assert pacs.sent == {uids[0]: 1}
    assert kinds(remote).count("export-started") == 1


def test_success_stays_a_success(remote, service, pacs):
    """A task that succeeded and comes back with more retries is reported again, not exported."""
    service.forgetful = True
    uids, uris = add_files(remote, 2)
    pacs.answer = lambda uid: 0x0122 if uid == uids[0] else 0
    [task] = service.add(make_task(uris))
    polled(remote, lambda: service.reports)
    service.tasks[task]["retries"] = 2
    polled(remote, lambda: len(service.reports) == 2)
    assert set(service.reports) == {("success", task, None)}
    assert pacs.sent == dict.fromkeys(uids, 1)
    assert one_export(remote).state == "partial"


def test_failure_stays_until_it_is_delivered_one_further(remote, service, pacs):
    """A task that failed and comes back with the same retries is reported again, not exported."""
    service.forgetful = True
    uids, uris = add_files(remote, 1)
    pacs.answer = lambda _: 0xA700
    [task] = service.add(make_task(uris))
    polled(remote, lambda: len(service.reports) == 3)
    assert set(service.reports) == {("failure", task, True)}
    assert pacs.sent == {uids[0]: 1}


def test_delivered_again_while_a_rest_is_being_sent(remote, service, pacs):
    """A new delivery takes no export away from the worker that is sending it."""
    uids, uris = add_files(remote, 4)
    with ScriptedPacs(lambda _: 0xA700) as other:
        add_destination(remote, other.port, "OTHER")
        pacs.answer = lambda uid: 0xA700 if uid == uids[0] else 0
        [task] = service.add(make_task(uris, '["PACS", "OTHER"]'))
        poll(remote)
        policy = hasten(remote, export={"retry_delay_seconds": 1000})
        run(policy)
    assert service.reports == [("failure", task, True)]
    with remote.ledger.write() as connection:
        connection.execute(schema.exports.update().values(due_at=schema.now()))
    held = claim(remote)
    assert held.destination == "PACS"
    assert poll(remote) == 1
    exports.confirm(remote.ledger, held, [])  # raises if the lease is gone
    assert claim(remote).destination == "OTHER"


def claim(adapter):
    return exports.claim(adapter.ledger, adapter.settings.dicom.scu, adapter.settings.workers)


def test_failure_that_was_requeued_before_it_was_taken(remote, service, pacs):
    """A task whose failure was heard though not answered is tried again when it comes back."""
    uids, uris = add_files(remote, 1)
    pacs.answer = lambda uid: 0xA700 if pacs.sent[uid] == 1 else 0
    [task] = service.add(make_task(uris))
    poll(remote)
    service.bad_days.append(error)
    run(remote)
    service.tasks[task]["retries"] = 1
    polled(remote, lambda: service.reports)
    assert service.reports == [("success", task, None)]
    assert pacs.sent == {uids[0]: 2}


# -- polls ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad_day", [error, hang_up, garbage, nested, not_a_list])
def test_service_that_cannot_be_polled(remote, service, bad_day):
    """Whatever comes instead of a list of tasks is one kind of error, which may pass."""
    service.bad_days.append(bad_day)
    with pytest.raises(TemporaryError):
        poll(remote)
    assert poll(remote) == 0


def test_answer_that_is_too_long(remote, service, monkeypatch):
    """An answer without end is not read to its end."""
    monkeypatch.setattr("workers.clients.results_service._LONGEST_ANSWER", 1000)
    service.bad_days.append(lambda request: answer(request, 200, b"[" + b" " * 2000 + b"]"))
    with pytest.raises(TemporaryError, match="too long"):
        poll(remote)


def test_poller_takes_in_and_rings(remote, service):
    """The poller goes on after bad days, takes in what comes, and wakes the export stage."""
    _, uris = add_files(remote, 1)
    service.bad_days.extend([error, garbage])
    work = make_work(remote)
    poller = Poller(remote, work.queues)
    poller.start()
    try:
        eventually(lambda: len(service.requests) >= 3)
        service.add(make_task(uris))
        eventually(lambda: work.queues.woken == ["export"])
        assert len(rows(remote, schema.tasks)) == 1
    finally:
        poller.stop()


def test_poller_without_a_service(adapter):
    """Without a remote Results Service there is nothing to poll, and nothing runs."""
    poller = Poller(adapter, make_work(adapter).queues)
    poller.start()
    poller.stop()
    assert isinstance(results_service(adapter.settings), LedgerResultsService)
    assert results_service(adapter.settings).pending(10) == []


def test_settings_choose_the_service(remote, service):
    """With an endpoint set, the REST contract is spoken; without one reports wait for it."""
    assert isinstance(results_service(remote.settings), RestResultsService)
    with pytest.raises(TemporaryError, match="no Results Service"):
        LedgerResultsService().report(Report("x", True, False, 0, 0))


def test_originals_test_data(remote, service):
    """Three tasks as in the original's own test data are three tasks, key order notwithstanding."""
    document = [
        {"taskId": "1", "jobId": "a", "pipelineId": "b", "payloadId": "c",
         "parameters": json.dumps(["PACS"]), "state": "Pending", "agent": "ClaraSCU",
         "retries": 0, "uris": ["/a", "b"]},
        {"retries": 1, "agent": "ClaraSCU", "taskId": "2", "uris": [], "parameters": '"PACS"'},
        {"taskId": "3", "uris": ["x"], "parameters": '"PACS"', "state": "Pending"},
    ]  # fmt: skip
    add_destination(remote, free_port())
    service.tasks = {task["taskId"]: task for task in document}
    assert poll(remote) == 3
    assert len(rows(remote, schema.task_files)) == 3
    assert {row.remote_retries for row in rows(remote, schema.tasks)} == {0, 1}


# -- operators -----------------------------------------------------------------------------------


def test_operator_tries_a_failed_task_again(remote, service, pacs):
    """`exports retry` of a task whose failure was final sends it, and then reports its success."""
    uids, uris = add_files(remote, 1)
    pacs.answer = lambda _: 0xC000
    [task] = service.add(make_task(uris, retries=3))
    polled(remote, lambda: service.reports)
    assert service.reports == [("failure", task, False)]
    pacs.answer = lambda _: 0
    exports.retry(remote.ledger, one_export(remote).id)
    run_until(remote, lambda: len(service.reports) == 2)
    assert service.reports[1] == ("success", task, None)
    assert pacs.sent == {uids[0]: 2}


def test_operator_discards_what_failed(remote, service, pacs):
    """A task of which every export is discarded has failed for good."""
    add_destination(remote, free_port(), "AWAY")
    _, uris = add_files(remote, 1)
    [task] = service.add(make_task(uris, '"AWAY"'))
    polled(remote, lambda: rows(remote, schema.holds))
    exports.discard(remote.ledger, one_export(remote).id)
    run_until(remote, lambda: service.reports)
    assert service.reports == [("failure", task, False)]
