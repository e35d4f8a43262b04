# SPDX-License-Identifier: Apache-2.0
"""A power loss at any moment breaks no promise, and every sync, link and rename is needed for that.

Each scenario takes the real steps on a file system that records what may be lost
(`tests/support_power_loss.py`).  For every moment, and everything that a power loss may leave then,
the real recovery runs on the files that are left and on the ledger, which survives.  The same after
a worker was killed and its work was done again.

Then each sync, link and rename of the code is spoiled, one at a time: left out, taken too late,
or (names) done piece by piece.  Each time something must break.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import shutil
import sqlite3
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from sqlalchemy import Row, Table, update

from adapter import core, files, plugins
from adapter import settings as settings_module
from adapter.core import Adapter
from adapter.errors import AdapterError
from adapter.files import FILE_SYSTEM, FileSystem
from adapter.ledger import Ledger, quarantine, schema
from adapter.models import AETitle, ArrivalId, JobState, Versioned
from adapter.scp.acceptance import Accepted, ContextResult
from adapter.scp.events import ScpEvents
from adapter.scp.store import Receive, StoreCommand, StoreContext
from adapter.settings import Pipeline, Settings
from adapter.spool import Spool, incoming_file
from adapter.spool import spool as spool_module
from tests import support_jobs
from tests.support_jobs import CT_SERIES
from tests.support_power_loss import (
    NAMES,
    SYNCS,
    Disk,
    Fault,
    Place,
    Point,
    RecordingFileSystem,
    Tree,
    signature,
    write_tree,
)
from tests.support_stages import add_ae_title, encode, make_instance, rows
from workers import notification, pipeline, reclamation, submission
from workers.clients.headers import HeaderReaders
from workers.clients.pipeline_process import Ending, How
from workers.stage import Work, take_all

#: Runs of a pipeline have their folders here; the next run deletes them, whatever is in them.
SCRATCH = re.compile(r"data/spool/work(?:/[^/]+)/(\.gone-)?[0-9a-f]{32}")

#: When instances are received: so long ago that a sweep takes note of them.
LONG_AGO = time.time() - 3600

#: What recovery depends on, without times and tokens: they differ from run to run.
FACTS = (
    "SELECT id, state, reason, deleted_at IS NULL, group_id FROM arrivals ORDER BY id",
    "SELECT id, state, instances FROM groups ORDER BY id",
    "SELECT id, state, outcome FROM jobs ORDER BY id",
    "SELECT count(*) FROM task_files",
    "SELECT value FROM meta WHERE name = 'spool'",
)


class WatchedLedger(Ledger):
    """A ledger on SQLite that tells of every transaction, and can be put back to any moment."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"sqlite:///{path}")
        self.path = path
        self.committed: Callable[[], None] = lambda: None

    @contextmanager
    def write(self):
        with super().write() as connection:
            yield connection
        self.committed()

    def content(self) -> tuple[bytes, object]:
        """Return its file, and the facts in it that decide what recovery does."""
        connection = sqlite3.connect(self.path)
        try:
            facts = [connection.execute(query).fetchall() for query in FACTS]
            return connection.serialize(), repr(facts)
        finally:
            connection.close()

    def put_back(self, content: bytes) -> None:
        self.committed = lambda: None
        self.close()
        for path in self.path.parent.glob(f"{self.path.name}*"):
            path.unlink()
        self.path.write_bytes(content)


class NoQueues:
    def wake(self, _stage: str, *_ids: str) -> bool:
        return True


@dataclass
class World:
    """A spool on a disk, its ledger, and what somebody was promised before."""

    adapter: Adapter
    work: Work
    root: Path
    promised: tuple
    files: FileSystem
    #: how many have sent before, and were killed
    attempt: int = 0

    @property
    def spool(self) -> Spool:
        return self.adapter.spool

    @property
    def ledger(self) -> Ledger:
        return self.adapter.ledger

    def promise(self, *told: object) -> None:
        """Note that somebody was told something that has to be true from here on."""
        if isinstance(self.files, RecordingFileSystem):
            self.files.promise(*told)
        else:
            self.promised += told

    def told(self, kind: str) -> list[tuple]:
        """Return what was promised of a kind."""
        return [told for told in self.promised if told[0] == kind]


class Bench:
    """Makes worlds, one after the other, each on a folder of its own.

    Parameters
    ----------
    folder : Path
        Where; in memory, since nothing here depends on a real sync.
    settings : Settings
        Of every adapter.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self._settings = settings
        self._readers = HeaderReaders(settings.notification)
        # One for what is recorded and one for recoveries, used again and again: SQLAlchemy takes
        # longer to compile its statements for a new one than the rest takes together.
        self._ledgers = [WatchedLedger(folder / f"{name}.sqlite") for name in ("one", "two")]
        self._ledgers[0].upgrade()
        self.new_ledger = self._ledgers[0].content()[0]
        self._begun: dict[type, tuple] = {}
        #: what was found broken in a state, by scenario: most states come about in several ways
        self.known: dict[tuple, list[str]] = {}

    def begin(self, kind: type[Scenario]) -> tuple[Scenario, bytes, Tree, tuple]:
        """Return a scenario and what it begins with; always the same."""
        if kind not in self._begun:
            scenario = kind()
            self._begun[kind] = scenario, *scenario.begin(self)
        return self._begun[kind]

    def close(self) -> None:
        self._readers.close()
        for ledger in self._ledgers:
            ledger.close()

    @contextmanager
    def world(self, ledger: bytes, tree: Tree, promised: tuple = ()) -> Iterator[World]:
        """Give a world whose power does not fail."""
        with self._world(self._ledgers[1], ledger, tree, promised, lambda _root: FILE_SYSTEM) as it:
            yield it

    @contextmanager
    def recorded(
        self,
        ledger: bytes,
        tree: Tree,
        promised: tuple = (),
        *,
        disk: Disk | None = None,
        **options: object,
    ) -> Iterator[World]:
        """Give a world of which every moment is recorded; `disk` if not all of it is certain."""

        def record(root: Path) -> RecordingFileSystem:
            return RecordingFileSystem(root, disk or Disk.holding(root), **options)

        with self._world(self._ledgers[0], ledger, tree, promised, record) as world:
            world.files.watch(self._ledgers[0].content, promised)
            self._ledgers[0].committed = world.files.committed
            yield world

    @contextmanager
    def _world(
        self,
        ledger: WatchedLedger,
        content: bytes,
        tree: Tree,
        promised: tuple,
        make: Callable[[Path], FileSystem],
    ) -> Iterator[World]:
        root = Path(tempfile.mkdtemp(dir=self._folder))
        write_tree(tree, root)
        ledger.put_back(content)
        system = make(root)
        adapter = Adapter(self._settings, Spool(root / "data" / "spool", system), ledger)
        work = Work(adapter, NoQueues())
        object.__setattr__(work, "headers", self._readers)
        yield World(adapter, work, root, promised, system)
        shutil.rmtree(root)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """What makes worlds, with a pipeline `copy` whose command is a function of this module."""
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(pipeline, "run_command", copy_input)
        patch.setattr(spool_module, "SHARDS", 2)  # what is true of two is true of more
        # Looking for plug-ins takes longer than a whole recovery.
        patch.setattr(plugins, "entry_points", cache(plugins.entry_points))
        settings = settings_module.load(data=Path(name) / "data")
        copy = {"name": "copy", "command": ["copy"], "destinations": ["PACS"]}
        storage = {"watermark_percent": 100.0, "reserve_space_gb": 0.0, "lag_seconds": 0.0}
        changes = {
            "storage": settings.storage.model_copy(update=storage),
            # However busy the machine is, nothing here is late.
            "notification": settings.notification.model_copy(update={"header_seconds": 100.0}),
            "workers": settings.workers.model_copy(update={"lease_seconds": 600.0}),
            "pipelines": {"copy": Pipeline.model_validate(copy)},
        }
        made = Bench(Path(name), settings.model_copy(update=changes))
        yield made
        made.close()


def copy_input(command, _unwanted) -> Ending:
    """Run a pipeline's command that copies its input."""
    for path in Path(command.environment["DICOM_ADAPTER_INPUT"]).iterdir():
        shutil.copy(path, command.environment["DICOM_ADAPTER_OUTPUT"])
    return Ending(How.ENDED, 0)


def let_leases_run_out(world: World) -> None:
    """Let so much time pass that no lease holds any more and everything is due."""
    with Ledger.write(world.ledger) as connection:
        for table in (schema.arrivals, schema.groups, schema.jobs):
            held = table.c.lease_token.is_not(None)
            connection.execute(update(table).where(held).values(lease_until=0))
        connection.execute(update(schema.jobs).values(due_at=0))
        connection.execute(
            update(schema.meta).where(schema.meta.c.name == "housekept").values(value="0")
        )


# -- scenarios -------------------------------------------------------------------------------------


class Scenario:
    """Steps whose every moment is looked at; this base is of instances that are received.

    `holds` names the syncs, links and renames that the scenario shows to be needed: functions that
    take them, or single places.  `idle` names their faults that do no harm, with the reason:
    functions or steps, and how they are spoiled.  Without `nameless` the file system knows no
    nameless files; without `kills` nobody is killed before the power is lost.
    """

    holds: frozenset[str] = frozenset()
    idle: dict[tuple[str, str], str] = {}  # noqa: RUF012 - never changed
    nameless = True
    kills = True

    def __init__(self) -> None:
        self.data_sets = data_sets(2)

    def begin(self, bench: Bench) -> tuple[bytes, Tree, tuple]:
        """Return ledger, files, and what is promised before the first step."""
        with bench.world(bench.new_ledger, {}) as world:
            start(world)
            self.prepare(world)
            return world.ledger.content()[0], Disk.holding(world.root).seen(), world.promised

    def prepare(self, world: World) -> None:
        """Add to a new adapter what the scenario begins with."""
        self.version = add_ae_title(world.adapter)

    def act(self, world: World) -> None:
        """Take the steps; also how they are taken again after whoever took them was killed."""
        store(world, self.data_sets, self.version)

    def recover(self, world: World) -> None:
        """Do what the adapter does by itself when it is started again."""
        start(world)
        for stage in (notification, reclamation, notification):
            stage.run(world.work)

    def check(self, world: World) -> Iterator[str]:
        """Yield what is broken after recovery."""
        yield from broken_instances(world, [body for _, body in self.data_sets])


class Received(Scenario):
    """An instance is received."""

    holds = frozenset({"IncomingFile.sync", "IncomingFile.publish"})

    def __init__(self) -> None:
        self.data_sets = data_sets(1)


class ReceivedWithTemporaryNames(Received):
    """The same where there are no nameless files."""

    nameless = False


class FirstStart(Scenario):
    """A spool is made, and tied to its ledger."""

    holds = frozenset(
        {
            "Spool.create: sync_directory .",
            "Spool.create: sync_directory data",
            "Spool.create: sync_directory data/spool",
            "write_once",
            "_write_temporary",
        }
    )

    def begin(self, bench: Bench) -> tuple[bytes, Tree, tuple]:
        with bench.world(bench.new_ledger, {}) as world:
            self.prepare(world)
            return world.ledger.content()[0], {}, ()

    def act(self, world: World) -> None:
        start(world)
        world.promise(("spool", world.spool.id, world.spool.hash_key()))

    def recover(self, world: World) -> None:
        start(world)

    def check(self, world: World) -> Iterator[str]:
        found = world.spool.id, world.spool.hash_key()
        if world.ledger.spool_id != found[0] or list(map(len, found)) != [32, 32]:
            yield "the spool's id is another one, or its key is torn"
        if any(tuple(told) != found for _, *told in world.told("spool")):
            yield "the spool's id or key has changed"


class FirstInstance(FirstStart):
    """A spool is made, and takes its first instance to a group."""

    holds = frozenset(
        {
            "Spool.create: sync_directory data/spool/incoming",
            "Spool.create: sync_directory data/spool/instances",
        }
    )
    kills = False

    def act(self, world: World) -> None:
        start(world)
        store(world, self.data_sets[:1], self.version)
        notification.run(world.work)

    recover = Scenario.recover
    check = Scenario.check


class Registered(Scenario):
    """Two instances that were received are registered."""

    holds = frozenset({"Spool._link_durably", "Spool._link"})

    def prepare(self, world: World) -> None:
        super().prepare(world)
        store(world, self.data_sets, self.version)

    def act(self, world: World) -> None:
        notification.run(world.work)


class Quarantined(Registered):
    """Of three instances two are quarantined: one has no study, one other bytes than before."""

    holds = frozenset({"Spool._link_durably", "Spool._link", "Spool._move"})
    idle = {  # noqa: RUF012 - never changed
        ("Spool._move: sync_directory", "left out"): "a file that came back is settled by its row",
        ("Spool._move: sync_directory", "too late"): "the same",
    }

    def __init__(self) -> None:
        (good,) = data_sets(1)
        other = make_instance(SOPInstanceUID=good[0], StudyInstanceUID="1.2.3", Modality="MR")
        none = make_instance(StudyInstanceUID=None)
        self.data_sets = [good, *((ds.SOPInstanceUID, encode(ds)) for ds in (other, none))]

    def check(self, world: World) -> Iterator[str]:
        yield from super().check(world)
        states = sorted(row.state for row in rows(world.adapter, schema.arrivals))
        if states != ["quarantined", "quarantined", "registered"]:
            yield f"the instances are {states}"


class Retried(Scenario):
    """A quarantined file is moved back to incoming/, and quarantined again."""

    holds = frozenset({"Spool._move"})

    def __init__(self) -> None:
        none = make_instance(StudyInstanceUID=None)
        self.data_sets = [(none.SOPInstanceUID, encode(none))]

    def prepare(self, world: World) -> None:
        super().prepare(world)
        store(world, self.data_sets, self.version)
        notification.run(world.work)
        (row,) = rows(world.adapter, schema.arrivals)
        assert quarantine.retry(world.ledger, [row.id]) == {row.id: "retried"}

    def act(self, world: World) -> None:
        reclamation.run(world.work)

    def recover(self, world: World) -> None:
        start(world)
        for stage in (reclamation, notification, reclamation):
            stage.run(world.work)


class FoundAgain(Registered):
    """A file of instances/ that has no row is given its name in incoming/ again by the sweep."""

    holds = frozenset({"Spool._link"})
    idle = {  # noqa: RUF012 - never changed
        ("link", "left out"): "the next sweep does it again",
        ("link", "too late"): "the next sweep does it again",
    }

    def prepare(self, world: World) -> None:
        Scenario.prepare(self, world)
        stored = store(world, self.data_sets, self.version)
        world.spool.link_instances(stored)
        world.spool.settle_registered(stored)

    def act(self, world: World) -> None:
        reclamation.run(world.work)

    def check(self, world: World) -> Iterator[str]:
        yield from super().check(world)
        if any(row.state != "registered" for row in rows(world.adapter, schema.arrivals)):
            yield "an instance that nothing is wrong with is not registered again"


class Deleted(Scenario):
    """A group, a duplicate and a discarded file of the quarantine are reclaimed."""

    holds = frozenset({"Spool.delete_arrivals"})

    def prepare(self, world: World) -> None:
        super().prepare(world)
        (job,) = support_jobs.add_group(world.adapter, CT_SERIES[:1], pipelines=("copy",))
        results = world.spool.result_folder(job)
        results.mkdir()
        (results / "000001.dcm").write_bytes(b"result")
        change(world, schema.jobs, state=JobState.SUCCEEDED, updated_at=0)
        (uid, body), _ = self.data_sets
        other = encode(make_instance(SOPInstanceUID=uid, StudyInstanceUID="1.2.3", Modality="MR"))
        sent = [(uid, body), (uid, body), (uid, other)]
        store(world, sent, self.version)
        notification.run(world.work)
        quarantine.discard(world.ledger, [row.id for row in rows(world.adapter, schema.arrivals)])
        world.promised = ()

    def act(self, world: World) -> None:
        reclamation.run(world.work)

    def check(self, world: World) -> Iterator[str]:
        yield from super().check(world)
        found = rows(world.adapter, schema.arrivals)
        if sum(row.deleted_at is not None for row in found) != 3:
            yield "what nothing needs stays"
        for row in found:
            if row.deleted_at is not None and any(path.exists() for path in places(world, row.id)):
                yield "a deleted file has come back"
        if list(world.spool.list_jobs()):
            yield "results of a reclaimed group have come back"


class Configured(Scenario):
    """The SCP's copy of the configuration is replaced."""

    holds = frozenset({"write_durably", "_write_temporary"})

    def prepare(self, world: World) -> None:
        world.spool.write_configuration({"version": 0})
        world.promise(("version", 0))

    def act(self, world: World) -> None:
        for version in (1, 2):
            world.spool.write_configuration({"version": version})
            world.promise(("version", version))

    def recover(self, world: World) -> None:
        start(world)

    def check(self, world: World) -> Iterator[str]:
        found = world.spool.read_configuration()["version"]
        if found < max(version for _, version in world.told("version")):
            yield "an older configuration has come back"


class Ran(Scenario):
    """A job is submitted and run, and its results are published."""

    holds = frozenset(
        {
            "Spool.make_work_folder",
            "Spool.publish_results",
            "Spool.has_results",
            "write_durably",
            "_write_temporary",
        }
    )
    idle = {  # noqa: RUF012 - never changed
        ("write_durably", "piece by piece"): "a job that is not described yet is described again",
        ("_write_temporary", "too late"): "the same",
    }

    def prepare(self, world: World) -> None:
        support_jobs.add_group(world.adapter, CT_SERIES[:2], pipelines=("copy",))

    def act(self, world: World) -> None:
        take_all(world.work, submission.take)
        take_all(world.work, pipeline.take)

    def recover(self, world: World) -> None:
        start(world)
        self.act(world)

    def check(self, world: World) -> Iterator[str]:
        (job,) = rows(world.adapter, schema.jobs)
        if job.state != JobState.SUCCEEDED:
            yield f"the job is {job.state} ({job.outcome})"
            return
        json.loads((world.spool.work_folder(job.id) / "metadata.json").read_text())
        inputs = [path.read_bytes() for path in world.spool.instances.glob("*/*")]
        results = world.spool.result_folder(job.id)
        published = rows(world.adapter, schema.task_files)
        if sorted(file.path for file in published) != sorted(
            path.name for path in results.iterdir()
        ):
            yield "the results are not those in the ledger"
        for file in published:
            if (results / file.path).read_bytes() not in inputs:
                yield "a result is torn"
        if len(published) != 2:
            yield f"{len(published)} of 2 results were published"


class PublishedTwice(Scenario):
    """Two runs publish a job's results; the second, that it was the first."""

    holds = frozenset({"Spool.publish_results"})
    job = "0b2f6c1e-9d5a-5d53-8f0e-6f1a7c3b9e21"

    def act(self, world: World) -> None:
        folder = world.spool.work_folder(self.job) / uuid.uuid4().hex / "publish"
        folder.mkdir(parents=True)
        for name in ("000001.dcm", "000002.dcm"):
            (folder / name).write_bytes(b"a whole result")
        world.spool.publish_results(self.job, folder)
        world.promise(("published", 2))

    def recover(self, world: World) -> None:
        start(world)

    def check(self, world: World) -> Iterator[str]:
        found = [path.read_bytes() for path in world.spool.result_folder(self.job).glob("*")]
        if found not in ([b"a whole result"] * 2, []) or (world.told("published") and not found):
            yield f"{len(found)} results are there, or torn"


SCENARIOS: list[type[Scenario]] = [
    FirstStart,
    FirstInstance,
    Received,
    ReceivedWithTemporaryNames,
    Registered,
    Quarantined,
    Retried,
    FoundAgain,
    Deleted,
    Configured,
    Ran,
    PublishedTwice,
]


def start(world: World) -> None:
    """Make or open the spool as every role does at its start."""
    (world.root / "data").mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        # Whoever starts makes an id and a key of its own, but the same ones in every test.
        number = world.attempt + 1
        patch.setattr(spool_module.secrets, "token_hex", lambda size: f"{number:0{2 * size}x}")
        patch.setattr(spool_module.uuid, "uuid4", lambda: uuid.UUID(int=number))
        known = world.ledger.spool_id
        if known is None:
            core._tie(world.spool, world.ledger, rebuilding=False)
        else:
            core._find(world.spool, known)


def store(world: World, sent: list[tuple[str, bytes]], version: int) -> list[str]:
    """Receive data sets on the real receive path; each Success is a promise."""
    context = ContextResult(1, CTImageStorage, 0, ExplicitVRLittleEndian)
    title = Versioned(version, AETitle(ae_title="BRAIN"))
    accepted = Accepted("MODALITY", "BRAIN", title, {1: context})
    around = StoreContext(world.spool, ScpEvents(), lambda: "", lambda: None)
    association, stored = f"{world.attempt:012x}", []

    def arrive(_now: float) -> ArrivalId:
        at = LONG_AGO + world.attempt
        stored.append(str(ArrivalId(at, association, len(stored) + 1, version)))
        return ArrivalId.parse(stored[-1])

    for uid, body in sent:
        receive = Receive(
            around,
            accepted,
            StoreCommand(CTImageStorage, uid, context),
            association=association,
            next_arrival=arrive,
            settled=lambda *_: None,
        )
        receive.data(memoryview(body))
        answer = receive.finish()
        assert answer.status == 0, answer
        world.promise(("stored", stored[-1], body))
    return stored


def data_sets(count: int) -> list[tuple[str, bytes]]:
    """Return UIDs and encoded data sets of instances of one study."""
    made = [make_instance(StudyInstanceUID="1.2.3") for _ in range(count)]
    return [(ds.SOPInstanceUID, encode(ds)) for ds in made]


def places(world: World, arrival: str) -> list[Path]:
    """Return where an arrival's file may be."""
    spool = world.spool
    return [
        spool.incoming_path(arrival),
        spool.instance_path(arrival),
        spool.quarantine_path(arrival),
    ]


def broken_instances(world: World, bodies: list[bytes]) -> Iterator[str]:
    """Yield what is broken of instances that were received, or told to be, after recovery."""
    found = {row.id: row for row in rows(world.adapter, schema.arrivals)}
    kept = [row.sop_instance_uid for row in found.values() if row.state == "registered"]
    for _, arrival, body in world.told("stored"):
        row = found.get(arrival)
        if row is None or row.state == "received":
            yield "an acknowledged instance is lost"
        elif row.state == "discarded" and row.sop_instance_uid not in kept:
            yield "an acknowledged instance counts as sent before, and was not"
        elif row.state == "registered" and not whole(world.spool.instance_path(arrival), [body]):
            yield "an acknowledged instance is not whole"
    for row in found.values():
        yield from broken_files(world, row, bodies)
    grouped = sum(row.group_id is not None for row in found.values())
    if grouped != sum(group.instances for group in rows(world.adapter, schema.groups)):
        yield "an instance does not count once"
    if len(kept) != len(set(kept)):
        yield "an instance is registered twice"


def broken_files(world: World, row: Row, bodies: list[bytes]) -> Iterator[str]:
    """Yield how an arrival's files differ from its row."""
    incoming, instance, aside = places(world, row.id)
    if incoming.exists():
        yield "an instance is still to be registered"
    if row.deleted_at is None:
        if row.state == "registered" and not whole(instance, bodies):
            yield "a registered instance is not whole"
        if row.state == "quarantined" and not whole(aside, bodies):
            yield "a quarantined instance is not whole"


def whole(path: Path, bodies: list[bytes]) -> bool:
    """Tell whether a file is there and holds one of the data sets, wholly."""
    data = path.read_bytes() if path.exists() else b""
    return data[128:132] == b"DICM" and any(data.endswith(body) for body in bodies)


def change(world: World, table: Table, **values: object) -> None:
    with world.ledger.write() as connection:
        connection.execute(update(table).values(**values))


# -- power losses ----------------------------------------------------------------------------------


def recorded(
    bench: Bench, kind: type[Scenario], fault: Fault | None = None
) -> Iterator[RecordingFileSystem]:
    """Yield what was recorded of a scenario; then, for each kill, of what is done again."""
    scenario, ledger, tree, promised = bench.begin(kind)
    options = {"fault": fault, "nameless": scenario.nameless}
    with bench.recorded(ledger, tree, promised, **options) as world:
        scenario.act(world)
        world.files.end()
    yield world.files
    for point in world.files.points if scenario.kills else ():
        if point.next is None or point.next.step not in SYNCS:
            continue  # most is there that is not certain just before a sync
        tree, disk = point.disk.seen(), point.disk.copy()
        with bench.recorded(point.ledger, tree, point.promised, disk=disk, **options) as again:
            let_leases_run_out(again)
            again.attempt = 1
            scenario.act(again)
            again.files.end()
        yield again.files


def broken(bench: Bench, kind: type[Scenario], points: Iterable[Point]) -> Iterator[str]:
    """Yield what power losses at these moments break."""
    for point in points:
        for tree in point.disk.leftovers(SCRATCH):
            state = kind, signature(tree), point.facts, point.promised
            if state not in bench.known:
                bench.known[state] = recovered(bench, kind, point, tree)
            for problem in bench.known[state]:
                yield f"{problem}, if the power is lost before {point.next}"


def recovered(bench: Bench, kind: type[Scenario], point: Point, tree: Tree) -> list[str]:
    """Return what is still broken after the recovery from a power loss."""
    scenario = bench.begin(kind)[0]
    with bench.world(point.ledger, tree, point.promised) as world:
        let_leases_run_out(world)
        world.attempt = 2
        try:
            scenario.recover(world)
            return list(scenario.check(world))
        except (AdapterError, OSError, ValueError) as error:
            return [f"{type(error).__name__}: {error}"]


@pytest.mark.parametrize("kind", SCENARIOS)
def test_a_power_loss_breaks_no_promise(bench: Bench, kind: type[Scenario]) -> None:
    """Whatever a power loss leaves, at any moment, before or after a kill, recovery makes good."""
    for found in recorded(bench, kind):
        assert next(broken(bench, kind, found.points), None) is None


@pytest.mark.parametrize("kind", SCENARIOS)
def test_every_step_is_needed(bench: Bench, kind: type[Scenario]) -> None:
    """Spoil a sync, a link or a rename anywhere, and some power loss breaks a promise."""
    held = held_by(bench, kind)
    harmless = [fault for fault in faults(held) if not is_found(bench, kind, fault)]
    assert harmless == [fault for fault in faults(held) if is_idle(kind, fault)]


def test_no_step_is_left_out_here(bench: Bench) -> None:
    """Every sync, link and rename of the spool goes through the seam, and a scenario holds it."""
    taken = {
        (function, step)
        for module in (files, incoming_file, spool_module)
        for function, receiver, step in calls(module)
        if receiver in SEAMS and step in {*SYNCS, *NAMES}
    }
    past_it = {
        (function, f"{receiver}.{step}")
        for module in (files, incoming_file, spool_module)
        for function, receiver, step in calls(module)
        if receiver not in SEAMS and step in DIRECT
    }

    assert {function for function, _ in past_it} <= {
        f"FileSystem.{step}" for step in ("link", "link_nameless", "rename", "unlink", *SYNCS)
    }
    held = {place for kind in SCENARIOS for place in held_by(bench, kind)}
    assert {place for place in taken if place[0] not in UNHELD} == {
        (place.function, place.step) for place in held
    }
    assert {function for function, _ in taken} >= UNHELD


#: What takes steps that promise nothing: the probe's file is deleted again.
UNHELD = {"Spool.probe"}
#: What the spool calls its file system, and how one would go past it.
SEAMS = {"files", "self.files", "self._files"}
DIRECT = {"fsync", "fdatasync", "sync", "link", "rename", "replace", "unlink", "hardlink_to"}


def calls(module: ModuleType) -> Iterator[tuple[str, str, str]]:
    """Yield the calls of methods in a module: the function they stand in, receiver, and method."""
    tree = ast.parse(inspect.getsource(module))
    functions = [(node, node.name) for node in tree.body if isinstance(node, ast.FunctionDef)]
    functions += [
        (node, f"{owner.name}.{node.name}")
        for owner in tree.body
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
        if isinstance(node, ast.FunctionDef)
    ]
    for function, name in functions:
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                yield name, ast.unparse(node.func.value), node.func.attr


def held_by(bench: Bench, kind: type[Scenario]) -> set[Place]:
    """Return the places that a scenario holds."""
    places = set().union(*(found.places for found in recorded(bench, kind)))
    held = {place for place in places if kind.holds & {place.function, str(place)}}
    assert {place.function for place in held} == {name.partition(":")[0] for name in kind.holds}
    return held


def faults(places: set[Place]) -> list[Fault]:
    """Return every fault of steps."""
    made = []
    for place in sorted(places):
        made += [Fault(place, "left out"), Fault(place, "too late")]
        if place.step in NAMES:
            made.append(Fault(place, "piece by piece"))
    return made


def is_idle(kind: type[Scenario], fault: Fault) -> bool:
    """Tell whether a fault is known to do no harm."""
    function, step = fault.place.function, fault.place.step
    names = {function, step, f"{function}: {step}"}
    return any(name in names and how == fault.how for name, how in kind.idle)


def is_found(bench: Bench, kind: type[Scenario], fault: Fault) -> bool:
    """Tell whether some power loss, or the steps themselves, show a fault."""
    try:
        for found in recorded(bench, kind, fault):
            # The last moments first: by then most has been promised.
            spoiled = (point for point in reversed(found.points) if point.spoiled)
            if next(broken(bench, kind, spoiled), None) is not None:
                return True
    except (AdapterError, AssertionError, OSError, ValueError):
        return True
    return False
