# SPDX-License-Identifier: Apache-2.0
"""The export stage: what is confirmed, what is tried again, what waits, and what is parked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from pydicom.uid import ImplicitVRLittleEndian
from sqlalchemy import update

from adapter import stages
from adapter.errors import PermanentError, SpoolAway
from adapter.ledger import destination_holds, exports, schema
from adapter.ledger.export_policy import FileCounts, state_after_try
from adapter.ledger.queries import find_export
from adapter.ledger.receipts import Receipt
from adapter.models import ExportState, Outcome
from adapter.settings import ScuExport
from tests.support_exports import (
    add_destination,
    add_task,
    hasten,
    instance_file,
    kinds,
    make_work,
    one_export,
    outcomes,
    rows,
    run,
    run_until,
)
from tests.support_peers import RawPeer, ScriptedPacs
from tests.support_stack import free_port
from tests.support_waiting import eventually
from tests.support_wire import reject
from workers import export
from workers.receipt_book import ENOUGH, MOST, ReceiptBook
from workers.stage import take_all

pytestmark = pytest.mark.every_ledger

PENDING, SENDING, SUCCEEDED, PARTIAL, PARKED, DISCARDED = ExportState


@pytest.fixture
def quick(adapter):
    """An adapter that does not wait for long."""
    return hasten(adapter)


@pytest.fixture
def pacs(quick):
    """A destination, PACS, that stores everything unless its script is changed."""
    with ScriptedPacs() as peer:
        add_destination(quick, peer.port)
        yield peer


def state(adapter, destination="PACS"):
    return one_export(adapter, destination).state


# -- the way when all is well --------------------------------------------------------------------


def test_all_files_are_confirmed(quick, pacs):
    """A task's files arrive once each; the export has succeeded and wakes reclamation."""
    uids = add_task(quick, 20)
    work = make_work(quick)

    assert take_all(work, export.take) == {"succeeded": 1}

    assert set(pacs.sent) == set(uids)
    assert set(pacs.sent.values()) == {1}
    assert pacs.associations == 1
    assert state(quick) == SUCCEEDED
    assert outcomes(quick) == dict.fromkeys(uids, "stored")
    assert work.queues.woken == [stages.RECLAMATION]
    assert kinds(quick) == ["export-started", "export-succeeded"]
    assert one_export(quick).lease_token is None


def test_each_destination_gets_everything(quick, pacs):
    """W11: each destination of a task is sent every file."""
    with ScriptedPacs() as other:
        add_destination(quick, other.port, "OTHER")
        uids = add_task(quick, 3, ["PACS", "OTHER"])
        run(quick)
        assert set(other.sent) == set(pacs.sent) == set(uids)


def test_names_are_found_without_regard_to_case(quick, pacs):
    """A destination is found by its name whatever its case, as in the original."""
    add_task(quick, 1, ["pAcs"])
    run(quick)
    assert state(quick, "pAcs") == SUCCEEDED


def test_task_without_files_has_succeeded(quick, pacs):
    """Zero files are a success, and nobody is called for it."""
    add_task(quick, 0)
    run(quick)
    assert state(quick) == SUCCEEDED
    assert pacs.associations == 0


def test_higher_priority_goes_first(quick, pacs):
    """Exports are taken by priority, then age."""
    order = []
    pacs.answer = lambda uid: order.append(uid) or 0
    [low], [first], [second] = (add_task(quick, 1, priority=priority) for priority in (1, 3, 3))
    run(quick)
    assert order == [first, second, low]


# -- statuses and the threshold ------------------------------------------------------------------


def test_every_status_class(quick, pacs):
    """Each answer is recorded as what it means, with its status."""
    answers = {
        0x0000: "stored", 0xB000: "stored", 0xB006: "stored", 0xB007: "stored", 0x0001: "stored",
        0x0107: "stored", 0x0116: "stored", 0x0111: "retry", 0xA700: "retry", 0x0110: "retry",
        0x0122: "refused", 0x0124: "refused", 0xA900: "retry", 0xC000: "retry",
    }  # fmt: skip
    slow = hasten(quick, export={"retry_delay_seconds": 1000})
    uids = add_task(slow, len(answers))
    by_uid = dict(zip(uids, answers, strict=True))
    pacs.answer = by_uid.__getitem__

    run(slow)

    assert outcomes(slow) == {uid: answers[status] for uid, status in by_uid.items()}
    written = rows(slow, schema.receipts, order=schema.receipts.c.number)
    assert [row.status for row in written] == list(answers)
    assert state(slow) == PENDING  # half of 14 failed: not a failure, and some may pass
    assert not one_export(slow).failed


def test_duplicate_on_a_repeat_is_stored(quick, pacs):
    """A file that was tried before is stored when its destination calls it a duplicate."""
    [uid] = add_task(quick, 1)
    pacs.answer = lambda _: 0xA700 if pacs.sent[uid] == 1 else 0x0111
    run_until(quick, lambda: state(quick) == SUCCEEDED)
    assert pacs.sent[uid] == 2


@pytest.mark.parametrize(
    ("failing", "failed", "end"), [(49, False, PARTIAL), (50, False, PARTIAL), (51, True, PARKED)]
)
def test_threshold(quick, pacs, failing, failed, end):
    """N10: 49 and 50 % failed is a success with a rest, 51 % is a failure."""
    uids = add_task(quick, 100)
    bad = set(uids[:failing])
    pacs.answer = lambda uid: 0xA700 if uid in bad else 0
    slow = hasten(quick, export={"retry_delay_seconds": 1000})

    run(slow)

    row = one_export(quick)
    assert (row.state, row.failed, row.tries) == (PENDING, failed, 1)
    assert outcomes(quick) == {uid: "retry" if uid in bad else "stored" for uid in uids}

    # Given all its tries, what remains is listed by UID.
    let_be_due(quick)
    run_until(quick, lambda: state(quick) == end)
    row = one_export(quick)
    assert (row.failed, row.tries) == (failed, 4)
    assert {uid: pacs.sent[uid] for uid in uids} == {uid: 4 if uid in bad else 1 for uid in uids}
    unconfirmed = find_export(quick.ledger, row.id).unconfirmed
    assert {file.sop_instance_uid for file in unconfirmed} == bad
    assert f"{failing} of 100 files" in row.message

    # An operator tries again, and only what is not confirmed is sent.
    pacs.answer = lambda _: 0
    exports.retry(quick.ledger, row.id)
    run(quick)
    assert state(quick) == SUCCEEDED
    assert {uid: pacs.sent[uid] for uid in uids} == {uid: 5 if uid in bad else 1 for uid in uids}


def let_be_due(adapter):
    with adapter.ledger.write() as connection:
        connection.execute(update(schema.exports).values(due_at=schema.now()))


def test_rest_within_the_threshold_gets_its_tries(quick, pacs):
    """W10: a rest within the threshold is tried again until its trouble has passed."""
    uids = add_task(quick, 10)
    pacs.answer = lambda uid: 0xA700 if uid == uids[0] and pacs.sent[uid] < 3 else 0
    run_until(quick, lambda: state(quick) == SUCCEEDED)
    assert pacs.sent[uids[0]] == 3
    assert {pacs.sent[uid] for uid in uids[1:]} == {1}


@pytest.mark.parametrize("status", [0xA700, 0xA900, 0xC123])
def test_retry_ladder(quick, pacs, status):
    """A task that fails gets 1 + 3 tries whatever the status, then parked; each is an event."""
    [uid] = add_task(quick, 1)
    pacs.answer = lambda _: status
    run_until(quick, lambda: state(quick) == PARKED)
    run(quick)
    assert pacs.sent[uid] == 4
    row = one_export(quick)
    assert (row.tries, row.reason) == (4, "too-many-failed")
    assert f"status {status:04X}" in row.message
    assert kinds(quick) == ["export-started", "export-failed-try"] * 3 + [
        "export-started",
        "export-parked",
    ]


def test_refused_for_good_is_not_tried_again(quick, pacs):
    """What will not pass is parked after its first try, or is what remains of a partial one.

    By default that is no status of what the destination says of the data set: an operator names
    those.
    """
    quick = hasten(quick, export={"permanent_statuses": ["Cxxx", "A900"]})
    refused = add_task(quick, 1)
    pacs.answer = lambda _: 0xC123
    run(quick)
    assert (state(quick), one_export(quick).tries) == (PARKED, 1)
    assert pacs.sent[refused[0]] == 1

    exports.discard(quick.ledger, one_export(quick).id)
    uids = add_task(quick, 4)
    pacs.answer = lambda uid: 0xA900 if uid == uids[0] else 0
    assert run(quick) == {"partial": 1}
    assert pacs.sent[uids[0]] == 1


VERDICTS = [
    # counts, tries, remote: state, failed
    ((FileCounts(0, 0, 0), 1, False), (SUCCEEDED, False)),
    ((FileCounts(100, 100, 0), 1, False), (SUCCEEDED, False)),
    ((FileCounts(100, 51, 49), 1, False), (PENDING, False)),
    ((FileCounts(100, 50, 50), 1, False), (PENDING, False)),
    ((FileCounts(100, 49, 51), 1, False), (PENDING, True)),
    ((FileCounts(100, 50, 50), 4, False), (PARTIAL, False)),
    ((FileCounts(100, 50, 0), 1, False), (PARTIAL, False)),
    ((FileCounts(100, 49, 51), 4, False), (PARKED, True)),
    ((FileCounts(100, 49, 51), 3, False), (PENDING, True)),
    ((FileCounts(100, 49, 0), 1, False), (PARKED, True)),
    ((FileCounts(100, 49, 51), 4, True), (PENDING, True)),
    ((FileCounts(100, 50, 50), 4, True), (PARTIAL, False)),
    ((FileCounts(1, 0, 1), 1, False), (PENDING, True)),
    ((FileCounts(3, 2, 1), 1, False), (PENDING, False)),
]


@pytest.mark.parametrize(("given", "expected"), VERDICTS)
def test_verdicts(given, expected):
    """A try's verdict follows from its counts alone."""
    tally, tries, remote = given
    assert state_after_try(tally, tries, ScuExport(), remote=remote) == expected


@pytest.mark.parametrize("threshold", [0.07, 0.1, 0.29, 0.3, 0.57, 0.7])
def test_exactly_at_any_threshold_is_no_failure(threshold):
    """Exactly the threshold is no failure, one file more is, whatever binary fractions say."""
    policy = ScuExport(failure_threshold=threshold)
    at = round(threshold * 100)
    assert state_after_try(FileCounts(100, 100 - at, at), 1, policy, remote=False)[1] is False
    assert state_after_try(FileCounts(100, 99 - at, at + 1), 1, policy, remote=False)[1] is True


# -- associations that end -----------------------------------------------------------------------


def test_file_that_breaks_the_association_holds_up_no_other(quick, pacs):
    """A file at which the peer aborts goes last from then on: all the others arrive."""
    uids = add_task(quick, 10)
    pacs.answer = lambda uid: "abort" if uid == uids[0] else 0
    run_until(quick, lambda: state(quick) == PARTIAL)
    assert pacs.sent[uids[0]] == 4
    assert {pacs.sent[uid] for uid in uids[1:]} == {1}
    assert "aborted" in one_export(quick).message


def test_silent_peer_costs_its_deadline(quick):
    """W19: a peer that never answers a C-STORE holds a worker no longer than the settings say."""
    hasty = hasten(quick, response_seconds=0.5, association_seconds=1.0)

    def behave(peer):
        peer.accept()
        peer.message()
        peer.hold()

    with RawPeer(behave) as peer:
        add_destination(hasty, peer.port)
        uids = add_task(hasty, 3)
        start = time.monotonic()
        run(hasty)
        assert time.monotonic() - start < 3
    assert outcomes(hasty) == {uids[0]: "retry"}
    assert one_export(hasty).tries == 1


@pytest.mark.parametrize(
    ("code", "reason"),
    [((1, 1, 3), "calling-ae-not-recognised"), ((1, 1, 7), "called-ae-not-recognised")],
)
def test_titles_that_are_not_recognised(quick, code, reason):
    """N9: a destination that does not know us, or is somebody else, is not tried again."""
    with RawPeer(lambda peer: (peer.pdu(), peer.socket.sendall(reject(*code)))) as peer:
        add_destination(quick, peer.port)
        add_task(quick, 2)
        run(quick)
    row = one_export(quick)
    assert (row.state, row.tries, row.reason) == (PARKED, 1, reason)
    assert "not recognised" in row.message


def test_transient_rejection_uses_a_try(quick):
    """A rejection that may pass is a try like any other."""
    with RawPeer(lambda peer: (peer.pdu(), peer.socket.sendall(reject(2, 1, 1)))) as peer:
        add_destination(quick, peer.port)
        add_task(quick, 1)
        run_until(quick, lambda: state(quick) == PARKED)
    assert one_export(quick).tries == 4


def test_refused_context_is_named(quick):
    """A file whose context is refused is parked with its class and its syntax by name."""
    with ScriptedPacs(syntaxes=[ImplicitVRLittleEndian]) as peer:
        add_destination(quick, peer.port)
        add_task(quick, 1)
        run(quick)
    row = one_export(quick)
    assert (row.state, row.tries) == (PARKED, 1)
    assert "CT Image Storage in Explicit VR Little Endian" in row.message


# -- destinations that cannot be reached ---------------------------------------------------------


def test_peer_that_is_down_and_comes_back(quick):
    """N9: while a destination is down its exports wait untried; then all arrive, each once."""
    port = free_port()
    add_destination(quick, port)
    first, second = add_task(quick, 3), add_task(quick, 3)

    assert run(quick) == {"pending": 1}
    [hold] = rows(quick, schema.holds)
    assert hold.failures == 1
    assert "nobody listens" in hold.reason
    run_until(quick, lambda: rows(quick, schema.holds)[0].failures >= 3)
    assert {row.tries for row in rows(quick, schema.exports)} == {0}
    assert None not in {row.waiting_since for row in rows(quick, schema.exports)}
    assert kinds(quick) == ["destination-on-hold"]

    with ScriptedPacs(port=port) as pacs:
        run_until(quick, lambda: {row.state for row in rows(quick, schema.exports)} == {SUCCEEDED})
    assert pacs.sent == dict.fromkeys([*first, *second], 1)
    assert rows(quick, schema.holds) == []
    assert {row.waiting_since for row in rows(quick, schema.exports)} == {None}
    assert kinds(quick)[:3] == ["destination-on-hold", "destination-back", "export-started"]


def test_peer_that_goes_down_in_the_middle(quick):
    """What was confirmed before a destination went down is not sent again when it is back."""
    port = free_port()
    add_destination(quick, port)
    uids = add_task(quick, 10)
    with ScriptedPacs(port=port) as before:
        before.answer = lambda _: "abort" if len(before.sent) == 6 else 0
        run(hasten(quick, export={"retry_delay_seconds": 1000.0}))  # not again while it is there
    with quick.ledger.write() as connection:
        connection.execute(schema.exports.update().values(due_at=schema.now()))
    run_until(quick, lambda: rows(quick, schema.holds))
    with ScriptedPacs(port=port) as after:
        run_until(quick, lambda: state(quick) == SUCCEEDED)
    assert set(before.sent) & set(after.sent) == {uids[5]}
    assert set(before.sent) | set(after.sent) == set(uids)
    assert one_export(quick).tries == 2


def test_hold_grows_and_is_bounded(quick):
    """A hold doubles from its minimum to its maximum."""
    policy = ScuExport(hold_minimum_seconds=10, hold_maximum_seconds=300)
    lengths = []
    for _ in range(8):
        with quick.ledger.write() as connection:
            destination_holds.extend(connection, "PACS", "away", policy)
        [hold] = rows(quick, schema.holds)
        lengths.append(round(hold.until - quick.ledger.now()))
        with quick.ledger.write() as connection:
            destination_holds.probe_now(connection, "pacs")
    assert lengths == [10, 20, 40, 80, 160, 300, 300, 300]


def test_hold_counts_what_is_found_at_once_as_one(quick):
    """Exports that find a destination away at the same time make its hold no longer."""
    for _ in range(4):
        with quick.ledger.write() as connection:
            destination_holds.extend(connection, "PACS", "away", ScuExport(hold_minimum_seconds=10))
    [hold] = rows(quick, schema.holds)
    assert hold.failures == 1
    assert hold.until - quick.ledger.now() < 11


def test_patience_ends(quick):
    """Who has waited for a destination longer than its patience is parked, all of them at once."""
    hasty = hasten(quick, export={"destination_patience_seconds": 0.5})
    add_destination(hasty, free_port())
    for _ in range(3):
        add_task(hasty, 1)
    run_until(hasty, lambda: {row.state for row in rows(hasty, schema.exports)} == {PARKED})
    assert {(row.reason, row.tries) for row in rows(hasty, schema.exports)} == {
        ("destination-unreachable", 0)
    }


def test_new_address_is_tried_at_once(quick):
    """An operator's retry does not wait for a hold to end."""
    slow = hasten(quick, export={"hold_minimum_seconds": 300, "hold_maximum_seconds": 300,
                                 "destination_patience_seconds": 0.01})  # fmt: skip
    add_destination(slow, free_port())
    add_task(slow, 1)
    run(slow)
    eventually(lambda: patience_is_over(slow))
    assert state(slow) == PARKED
    with ScriptedPacs() as pacs:
        add_destination(slow, pacs.port, replace=True)
        assert exports.retry_all(slow.ledger, destination="pacs") == [one_export(slow).id]
        run(slow)
    assert state(slow) == SUCCEEDED


def test_a_retry_probes_for_those_that_only_wait(quick):
    """`exports retry --destination` ends a hold, also if none of its exports is parked."""
    slow = hasten(quick, export={"hold_minimum_seconds": 300, "hold_maximum_seconds": 300})
    add_destination(slow, free_port())
    add_task(slow, 1)
    run(slow)
    with ScriptedPacs() as pacs:
        add_destination(slow, pacs.port, replace=True)
        run(slow)
        assert state(slow) == PENDING
        assert exports.retry_all(slow.ledger, destination="pacs") == []
        run(slow)
    assert state(slow) == SUCCEEDED


def patience_is_over(adapter):
    with adapter.ledger.write() as connection:
        destination_holds.probe_now(connection, "PACS")
    run(adapter)
    return state(adapter) == PARKED


# -- claims --------------------------------------------------------------------------------------


def claim(adapter):
    return exports.claim(adapter.ledger, adapter.settings.dicom.scu, adapter.settings.workers)


@pytest.mark.parametrize(("associations", "share"), [(8, 4), (5, 2), (1, 1)])
def test_no_destination_has_more_than_half(quick, associations, share):
    """However many exports wait for one destination, half of the slots are for the others."""
    adapter = hasten(quick, maximum_number_of_associations=associations)
    for _ in range(associations + 1):
        add_task(adapter, 1, ["Pacs"])
    add_task(adapter, 1, ["OTHER"])

    claimed = [found for _ in range(associations + 2) if (found := claim(adapter))]

    assert [found.destination for found in claimed] == ["Pacs"] * share + ["OTHER"]
    assert stages.EXPORT not in stages.due_stages(adapter)
    exports.give_back(adapter.ledger, claimed[0])
    assert stages.EXPORT in stages.due_stages(adapter)
    assert claim(adapter).destination == "Pacs"


def test_one_probe_at_a_time(quick):
    """A destination whose hold has run out is probed by one export at a time."""
    for _ in range(3):
        add_task(quick, 1)
    with quick.ledger.write() as connection:
        destination_holds.extend(connection, "pacs", "away", ScuExport())
    assert claim(quick) is None
    with quick.ledger.write() as connection:
        destination_holds.probe_now(connection, "PACS")
    probe = claim(quick)
    assert probe is not None
    assert claim(quick) is None
    exports.answered(quick.ledger, probe)
    assert claim(quick) is not None


def test_dead_workers_lease_frees_its_slot(quick):
    """A lease that ran out counts against no destination, and its export is due at once."""
    adapter = hasten(quick, maximum_number_of_associations=2, workers={"lease_seconds": 0.2})
    add_task(adapter, 1)
    first = claim(adapter)
    assert claim(adapter) is None
    second = eventually(lambda: claim(adapter))
    assert (second.id, second.again, first.again) == (first.id, True, False)


def test_export_that_kills_its_workers_is_parked(quick, pacs):
    """An export whose lease ran out too often is parked instead of being claimed again."""
    adapter = hasten(quick, workers={"lease_seconds": 0.1, "maximum_lease_expiries": 2})
    add_task(adapter, 1)
    assert eventually(lambda: claim(adapter))
    assert eventually(lambda: claim(adapter))
    assert eventually(lambda: claim(adapter) is None and state(adapter) == PARKED)
    assert one_export(adapter).reason == "kills-its-worker"
    assert pacs.associations == 0


def test_stale_holder_stops(quick, pacs):
    """A worker whose export was taken over stops after the file on its way, and writes nothing."""
    uids = add_task(quick, 10)
    work = make_work(quick)

    def take_over(_uid):
        if len(pacs.sent) == 3:
            with quick.ledger.write() as connection:
                connection.execute(update(schema.exports).values(lease_token="another"))
            work.stopping.wait(2)  # longer than a lease is kept without looking
        return 0

    pacs.answer = take_over
    assert take_all(work, export.take) == {"lost": 1}
    assert len(pacs.sent) <= 4
    assert one_export(quick).lease_token == "another"
    assert set(outcomes(quick)) <= set(uids[:2])


def test_stop_between_two_files(quick, pacs):
    """A worker that is told to stop gives the export back after the file on its way, untried."""
    uids = add_task(quick, 10)
    work = make_work(quick)
    pacs.answer = lambda _: work.stopping.set() or 0
    take_all(work, export.take)
    row = one_export(quick)
    assert (row.state, row.tries, row.lease_token) == (PENDING, 0, None)
    assert list(pacs.sent) == uids[:1]
    run(quick)
    assert pacs.sent == dict.fromkeys(uids, 1)


# -- a worker that is killed ---------------------------------------------------------------------

WORKER = """
import sys
from pathlib import Path
from adapter import settings
from adapter.core import open_adapter
from tests.support_exports import hasten, run
run(hasten(open_adapter(settings.load(data=Path(sys.argv[1])))))
"""


@pytest.mark.parametrize("duplicate", [0x0000, 0x0111])
def test_killed_worker(adapter, duplicate):
    """R15: after a SIGKILL only what was on its way into the ledger is sent again.

    A destination that then speaks of duplicates has stored them.
    """
    quick = hasten(adapter)
    reached = threading.Event()

    def answer(uid):
        if len(pacs.sent) >= 100:
            reached.set()
        return 0x0000 if pacs.sent[uid] == 1 else duplicate

    with ScriptedPacs(answer) as pacs:
        add_destination(quick, pacs.port)
        uids = add_task(quick, 300)
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(adapter.settings.data)],
            env={**os.environ, "DICOMADAPTER__WORKERS__LEASE_SECONDS": "3"},
        )
        assert reached.wait(60)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        assert state(quick) == SENDING
        confirmed = set(outcomes(quick))
        assert len(confirmed) >= 100 - MOST - 1

        run_until(quick, lambda: state(quick) == SUCCEEDED)

        assert set(pacs.sent) == set(uids)
        again = {uid for uid, times in pacs.sent.items() if times > 1}
        assert max(pacs.sent.values()) <= 2
        assert len(again) <= MOST + 1
        assert not again & confirmed
    assert one_export(quick).tries == 1


def test_receipts_are_written_soon(quick, pacs):
    """Receipts are in the ledger half a second later, or sixteen files, while more is sent."""
    uids = add_task(quick, 3 * MOST)
    lag = []

    def answer(uid):
        lag.append(uids.index(uid) - len(outcomes(quick)))
        if uid == uids[5]:
            written = eventually(lambda: len(outcomes(quick)) == 5, 2)
            assert written
        return 0

    pacs.answer = answer
    run(quick)
    assert state(quick) == SUCCEEDED
    assert max(lag) <= MOST
    assert ENOUGH < MOST


class SlowLedger:
    """Stands for the ledger's verb that writes receipts, and takes as long as a test wants."""

    def __init__(self):
        self.batches = []
        self.go_on = threading.Semaphore(0)

    def __call__(self, _ledger, _export, receipts):
        self.go_on.acquire()
        self.batches.append([receipt.number for receipt in receipts])


@pytest.fixture
def slow_ledger(monkeypatch):
    """A ledger that writes receipts when it is told to, and never because time has passed."""
    ledger = SlowLedger()
    monkeypatch.setattr("workers.receipt_book.exports.confirm", ledger)
    monkeypatch.setattr("workers.receipt_book.SECONDS", 60.0)
    return ledger


def test_sixteen_receipts_wait_at_most(slow_ledger):
    """While the ledger is slow, no more than sixteen answers are in nobody's ledger."""
    taken = []

    def send():
        with ReceiptBook(None, None) as book:
            for number in range(40):
                book.add(Receipt(number, 1, Outcome.STORED))
                taken.append(number)

    sender = threading.Thread(target=send)
    sender.start()
    eventually(lambda: len(taken) == MOST - 1)
    slow_ledger.go_on.release()
    first = eventually(lambda: slow_ledger.batches and slow_ledger.batches[0])
    assert ENOUGH <= len(first) <= MOST
    eventually(lambda: len(taken) == MOST - 1 + len(first))
    for _ in range(40):
        slow_ledger.go_on.release()
    sender.join(10)
    assert [number for batch in slow_ledger.batches for number in batch] == list(range(40))


def test_eight_receipts_are_written_at_once(slow_ledger):
    """Receipts are written when there are enough of them, though little time has passed."""
    slow_ledger.go_on.release()
    with ReceiptBook(None, None) as book:
        for number in range(ENOUGH):
            book.add(Receipt(number, 1, Outcome.STORED))
        eventually(lambda: slow_ledger.batches == [list(range(ENOUGH))])


def test_whatever_keeps_a_receipt_from_being_written_ends_the_export(monkeypatch):
    """An error that nobody foresaw is raised where files are sent: no receipt is lost unseen."""

    def confirm(*_):
        raise RuntimeError("unforeseen")

    monkeypatch.setattr("workers.receipt_book.exports.confirm", confirm)
    with pytest.raises(RuntimeError, match="unforeseen"), ReceiptBook(None, None) as book:
        book.add(Receipt(0, 1, Outcome.STORED))


# -- files ---------------------------------------------------------------------------------------


def test_missing_file_may_still_come(quick, pacs):
    """A file that is not there yet is waited for without a try, and then counts as failed."""
    uids = add_task(quick, 4)
    [task] = rows(quick, schema.tasks)
    path = quick.spool.result_folder(task.job_id) / "0000.dcm"
    content = path.read_bytes()
    path.unlink()

    run(quick)
    row = one_export(quick)
    assert (row.state, row.tries) == (PENDING, 0)
    assert pacs.associations == 0

    late = hasten(quick, workers={"visibility_seconds": 0.01})
    let_be_due(late)
    assert run(late) == {"partial": 1}
    assert outcomes(late) == {uids[0]: "refused", **dict.fromkeys(uids[1:], "stored")}
    assert "file missing" in one_export(late).message

    path.write_bytes(content)
    exports.retry(late.ledger, row.id)
    run(late)
    assert state(late) == SUCCEEDED
    assert pacs.sent == dict.fromkeys(uids, 1)


def test_bound_to_fail_sends_nothing(quick, pacs):
    """T11: a task of which too many files cannot be sent is parked, and nobody is called."""
    hasty = hasten(quick, workers={"visibility_seconds": 0.01})
    _, good = instance_file()
    add_task(hasty, [b"no DICOM file", b"no DICOM file", good])
    run(hasty)
    row = one_export(hasty)
    assert (row.state, row.reason) == (PARKED, "unfit-files")
    assert "2 of 3 files cannot be sent" in row.message
    assert pacs.associations == 0


def test_refused_by_the_peer_is_not_unfit(quick, pacs):
    """What its destination refused does not keep the rest of a failed task from being tried."""
    uids = add_task(quick, 10)
    pacs.answer = lambda uid: 0x0122 if uid in uids[:6] else 0xA700
    run_until(quick, lambda: state(quick) == PARKED)
    assert one_export(quick).reason == "too-many-failed"
    assert pacs.sent == {uid: 1 if uid in uids[:6] else 4 for uid in uids}


def test_half_of_the_files_unfit_is_no_failure(quick, pacs):
    """Exactly half of the files unfit: the other half is sent."""
    uid, good = instance_file()
    add_task(quick, [b"no DICOM file", good])
    assert run(quick) == {"partial": 1}
    assert pacs.sent == {uid: 1}


def test_volume_that_is_away(quick, pacs):
    """As long as the volume with the results is not there, its files are not missing."""
    hasty = hasten(quick, workers={"visibility_seconds": 0.01})
    add_task(hasty, 1)
    away = hasty.spool.results.with_name("away")
    hasty.spool.results.rename(away)
    with pytest.raises(SpoolAway):
        run(hasty)
    assert (one_export(hasty).tries, one_export(hasty).lease_token) == (0, None)
    away.rename(hasty.spool.results)
    run_until(hasty, lambda: state(hasty) == SUCCEEDED)
    assert pacs.associations == 1


# -- destinations that are not configured; what an operator may do --------------------------------


def test_unknown_destination_waits_for_the_operator(quick):
    """A task for a destination that is not configured is parked, and goes on when it is."""
    add_task(quick, 1, ["NEW"])
    run(quick)
    row = one_export(quick, "NEW")
    assert (row.state, row.reason) == (PARKED, "unknown-destination")
    assert "NEW" in row.message
    with ScriptedPacs() as pacs:
        add_destination(quick, pacs.port, "NEW")
        exports.retry(quick.ledger, row.id)
        run(quick)
    assert state(quick, "NEW") == SUCCEEDED


def test_discarded_is_sent_no_more(quick, pacs):
    """A discarded export is never sent, and stays discarded."""
    add_task(quick, 1)
    export_id = one_export(quick).id
    exports.discard(quick.ledger, export_id)
    run(quick)
    assert pacs.associations == 0
    for verb in (exports.discard, exports.retry):
        with pytest.raises(PermanentError, match="is discarded"):
            verb(quick.ledger, export_id)


def test_wrong_states_are_told(quick, pacs):
    """What cannot be retried or discarded is refused in clear words."""
    add_task(quick, 1)
    export_id = one_export(quick).id
    with pytest.raises(PermanentError, match="is pending: only a parked or partial"):
        exports.retry(quick.ledger, export_id)
    run(quick)
    with pytest.raises(PermanentError, match="is succeeded: "):
        exports.discard(quick.ledger, export_id)
    for verb in (exports.discard, exports.retry):
        with pytest.raises(PermanentError, match="there is no export nonsense"):
            verb(quick.ledger, "nonsense")
    assert exports.retry_all(quick.ledger, destination="PACS") == []
    assert pacs.associations == 1


def test_nothing_to_do_writes_nothing(quick, pacs):
    """A wake-up that finds nothing reports nothing."""
    assert run(quick) == {}
    add_task(quick, 1)
    run(quick)
    assert run(quick) == {}
    assert pacs.associations == 1


def test_lease_is_kept_while_sending(quick, pacs):
    """A long export keeps its lease."""
    adapter = hasten(quick, workers={"lease_seconds": 2}, response_seconds=10)
    add_task(adapter, 1)
    others = []

    def answer(_uid):
        deadline = time.monotonic() + 3
        eventually(lambda: others.append(claim(adapter)) or time.monotonic() > deadline)
        return 0

    pacs.answer = answer
    assert run(adapter) == {"succeeded": 1}
    assert set(others) == {None}
