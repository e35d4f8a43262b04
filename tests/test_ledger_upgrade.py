# SPDX-License-Identifier: Apache-2.0
"""The schema's revisions: they only add, and the releases around one work beside each other."""

from __future__ import annotations

import ast
import inspect
import json
import os
import subprocess
import sys
import tarfile
import time
from io import BytesIO
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from adapter.core import Adapter, open_adapter, open_ledger
from adapter.errors import LedgerError
from adapter.ledger import Ledger, configuration, events, revisions, schema
from adapter.ledger.revisions import NEEDS
from adapter.models import AETitle, EntityKind
from adapter.settings import Settings
from adapter.stages import due_stages
from tests import peers
from tests.support_ledger import add_row, everything_in
from tests.support_postgresql import PostgreSQL
from tests.support_stages import (
    IncomingAssociation,
    add_ae_title,
    let_time_pass,
    make_instance,
    make_work,
    rows,
)
from workers import grouping, notification
from workers.stage import take_all

pytestmark = pytest.mark.every_ledger

ROOT = Path(__file__).parents[1]
VERSIONS = ROOT / "adapter/ledger/migrations/versions"
SCRIPTS = sorted(VERSIONS.glob("[0-9]*.py"))

#: What a later release may do to the schema under this one.
NEXT = """
import sqlalchemy as sa
from alembic import op

revision = "next"
down_revision = {head!r}
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table("invented", sa.Column("id", sa.Integer, primary_key=True))
    op.add_column("arrivals", sa.Column("invented", sa.String(8)))
    op.add_column("groups", sa.Column("invented", sa.Integer, nullable=False, server_default="7"))
    op.add_column("jobs", sa.Column("invented", sa.Integer, nullable=False, server_default="7"))
    op.add_column("configuration", sa.Column("invented", sa.JSON))
    op.create_index("ix_arrivals_invented", "arrivals", ["invented"])
"""


def upgrade_beyond(ledger: Ledger, folder: Path) -> None:
    """Bring a ledger to a revision that this release does not know."""
    (folder / "next.py").write_text(NEXT.format(head=revisions.newest()))
    config = revisions.config()
    config.set_main_option("path_separator", "os")
    config.set_main_option("version_locations", f"{VERSIONS}{os.pathsep}{folder}")
    with ledger.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def work_through(adapter: Adapter) -> None:
    """Take one instance from configuration to its job, as every release must be able to."""
    association = IncomingAssociation(adapter, add_ae_title(adapter))
    association.store(make_instance())
    work = make_work(adapter)
    assert "notification" in due_stages(adapter) or list(adapter.spool.list_incoming())
    assert notification.run(work) == {"registered": 1}
    let_time_pass(adapter, 10)
    assert "grouping" in due_stages(adapter)
    assert take_all(work, grouping.take) == {"closed": 1, "jobs": 1}
    assert "submission" in due_stages(adapter)
    work.headers.close()


def test_the_revisions_make_the_schema(adapter: Adapter) -> None:
    """What the revisions make is what the tables of schema.py say, with nothing left over."""
    with adapter.ledger.write() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []


def test_an_empty_database_is_not_usable_before_it_is_upgraded(settings: Settings) -> None:
    """A ledger without a schema says so; upgraded twice it is upgraded once."""
    settings.data.mkdir()
    ledger = open_ledger(settings)
    ledger.upgrade()
    with ledger.write() as connection:
        schema.metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE IF EXISTS alembic_version")
    assert not ledger.is_usable()
    assert ledger.revision is None

    ledger.upgrade()
    ledger.upgrade()

    assert ledger.is_usable()
    assert ledger.revision == revisions.newest()
    ledger.close()


def test_a_database_without_an_encoding_will_do(postgresql: PostgreSQL) -> None:
    """A server whose cluster was made in the C locale keeps text as bytes: it serves as any."""
    postgresql.execute("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0")
    ledger = Ledger(postgresql.url("ascii"))
    try:
        ledger.upgrade()
        with ledger.write() as connection:
            events.record(connection, "written", count=1)
        with ledger.read() as connection:
            (row,) = connection.execute(schema.events.select())
    finally:
        ledger.close()
        postgresql.drop_database(postgresql.url("ascii"))
    assert row.detail == {"count": 1}


def test_this_release_works_on_the_schema_of_the_next(settings: Settings, tmp_path: Path) -> None:
    """A schema that a newer release has added to is used as it is: started on, and worked on."""
    opened = open_adapter(settings, create=True)
    upgrade_beyond(opened.ledger, tmp_path)
    opened.close()

    adapter = open_adapter(settings, create=True)

    assert adapter.ledger.revision == "next"
    assert adapter.ledger.is_usable()
    work_through(adapter)
    saved = configuration.snapshot(adapter.ledger)
    assert len(configuration.current(adapter.ledger, EntityKind.AE_TITLE)) == saved["version"] == 1
    adapter.close()


def test_a_role_that_runs_outlives_an_upgrade_under_it(adapter: Adapter, tmp_path: Path) -> None:
    """What was opened before the upgrade goes on after it, prepared statements included."""
    version = add_ae_title(adapter)
    work = make_work(adapter)
    association = IncomingAssociation(adapter, version)
    for _ in range(6):  # psycopg prepares what it has seen five times
        association.store(make_instance())
        assert notification.run(work) == {"registered": 1}
        add_row(adapter, schema.events, at=0.0, kind="x", detail={})

    upgrade_beyond(adapter.ledger, tmp_path)

    association.store(make_instance())
    assert notification.run(work) == {"registered": 1}
    let_time_pass(adapter, 10)
    assert take_all(work, grouping.take) == {"closed": 7, "jobs": 7}
    work.headers.close()


def test_a_release_that_was_left_behind_does_not_start(settings: Settings, tmp_path: Path) -> None:
    """If what this release uses was taken away, it says that, and touches nothing."""
    adapter = open_adapter(settings, create=True)
    upgrade_beyond(adapter.ledger, tmp_path)
    add_row(adapter, schema.meta, name=NEEDS, value="next")
    adapter.close()

    with pytest.raises(LedgerError, match="revision next, of a newer release"):
        open_adapter(settings, create=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_revision_only_adds(script: Path) -> None:
    """Nothing that the release before uses is dropped, renamed or made stricter."""
    (upgrade,) = [
        node
        for node in ast.parse(script.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "upgrade"
    ]
    calls = [node for node in ast.walk(upgrade) if isinstance(node, ast.Call)]
    done = {
        node.func.attr
        for node in calls
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) == "op"
    }
    assert done <= {"create_table", "create_index", "add_column", "execute", "f"}
    for call in calls:
        if ast.unparse(call.func) == "op.execute":
            assert ast.literal_eval(call.args[0]).startswith("UPDATE ")
        if ast.unparse(call.func) == "op.add_column":
            column = ast.unparse(call.args[1])
            assert "nullable=False" not in column or "server_default" in column, column


def test_the_revisions_are_one_line() -> None:
    """There is one way up, and the names of the files give it in order."""
    scripts = ScriptDirectory.from_config(revisions.config())

    assert scripts.get_heads() == [revisions.newest()]
    assert [one.revision for one in scripts.walk_revisions()] == revisions.known()[::-1]


#: What the release before revision 0003 left of an AE title that was changed twice: groups of a
#: patient with a number for an id, one of them open, and of a study.
BEFORE_0003 = """
INSERT INTO configuration (version, kind, key, body, owner, created_at, current, deleted) VALUES
 (1, 'aet', 'BRAIN', '{body}', 'operator', 0, false, false),
 (2, 'aet', 'BRAIN', '{body}', 'operator', 0, false, true),
 (3, 'aet', 'BRAIN', '{body}', 'operator', 0, false, false),
 (4, 'aet', 'BRAIN', '{body}', 'operator', 0, false, false),
 (5, 'aet', 'BRAIN', '{body}', 'operator', 0, true, false);
INSERT INTO groups (id, version, called_ae_title, key, generation, state, opened_at, newest_at,
 due_at, maximum_at, look_at, instances) VALUES
 ('closed', 3, 'BRAIN', '{patient}', 1, 'closed', 1, 1, 6, 3601, 6, 1),
 ('open', 4, 'BRAIN', '{patient}', 1, 'open', {at}, {at}, {at} + 5, {at} + 3600, {at} + 5, 1),
 ('study', 4, 'BRAIN', '1.2.3', 1, 'closed', 1, 1, 6, 3601, 6, 1);
INSERT INTO arrivals (id, state, version, association, received_at, study_instance_uid, group_id)
 VALUES ('a', 'registered', 4, 'x', 1, '1.2.3', 'study'),
        ('b', 'registered', 4, 'x', 1, '1.2.4', 'open'),
        ('c', 'registered', 3, 'x', 1, '1.2.5', 'closed');
"""


def test_an_upgraded_ledger_goes_on_with_its_open_groups(settings: Settings) -> None:
    """What was open takes its next instance, and no number of a patient is left in any file."""
    patient = "31415926535"
    settings.data.mkdir()
    adapter = open_adapter(settings, create=True)
    config = revisions.config()
    with adapter.ledger.write() as connection:
        schema.metadata.drop_all(connection)
        connection.exec_driver_sql("DROP TABLE alembic_version")
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
    body = AETitle(
        ae_title="BRAIN", processor_settings={"pipeline-a": "a", "groupBy": "0010,0020"}
    ).model_dump_json(by_alias=True)
    script = BEFORE_0003.format(body=body, patient=patient, at=time.time())
    for statement in filter(str.strip, script.split(";")):
        with adapter.ledger.write() as connection:
            connection.exec_driver_sql(statement)
    adapter.close()

    adapter = open_adapter(settings, create=True)

    assert [row.first_version for row in rows(adapter, schema.configuration)] == [1, 1, 3, 3, 3]
    files = [path.read_bytes() for path in settings.data.glob("ledger.sqlite*")]
    assert patient.encode() not in b"".join(files)  # before closing empties the write-ahead log
    assert patient.encode() not in everything_in(adapter)
    work = make_work(adapter)
    IncomingAssociation(adapter, 5).store(make_instance(PatientID=patient))
    assert notification.run(work) == {"registered": 1}
    found = {row.id: row for row in rows(adapter, schema.groups)}
    assert {name: row.instances for name, row in found.items()} == {
        "closed": 1,
        "open": 2,
        "study": 1,
    }
    assert found["study"].key == "1.2.3"
    work.headers.close()
    adapter.close()


# -- the release before ----------------------------------------------------------------------------


def test_the_code_before_a_revision_works_on_its_schema(adapter: Adapter, tmp_path: Path) -> None:
    """The code that stood before the newest revision, taken from history, works on it."""
    if len(SCRIPTS) < 2:
        return  # the first revision has no code before it
    if not (ROOT / ".git").exists():
        peers.cannot(peers.Lack.HISTORY)
    peers.need("git")
    before = _git("log", "--diff-filter=A", "--format=%H^", "-1", "--", str(SCRIPTS[-1]))
    archive = _git("archive", before.decode().strip(), "adapter", "workers", "celeryconfig.py",
                   "tests/support_stages.py", "tests/__init__.py")  # fmt: skip
    with tarfile.open(fileobj=BytesIO(archive)) as files:
        files.extractall(tmp_path / "before", filter="data")
    lines = inspect.getsource(work_through)
    (tmp_path / "before/work.py").write_text(
        "import json, sys\nfrom pathlib import Path\n"
        "from adapter.core import Adapter, open_adapter\n"
        "from adapter.stages import due_stages\nfrom adapter.settings import load\n"
        "from tests.support_stages import IncomingAssociation, add_ae_title, let_time_pass\n"
        "from tests.support_stages import make_instance, make_work\n"
        "from workers import grouping, notification\n"
        "try:\n"
        "    from workers.stage import take_all\n"
        "except ImportError:  # before revision 0002 one call took all that was due\n"
        "    grouping.take = grouping.run\n"
        "    take_all = lambda work, take: take(work)\n"
        f"{lines}\n"
        "adapter = open_adapter(load(data=Path(sys.argv[1])))\n"
        "work_through(adapter)\nadapter.close()\nprint(json.dumps('done'))\n"
    )
    done = subprocess.run(
        [sys.executable, "work.py", str(adapter.settings.data)],
        cwd=tmp_path / "before",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "before")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == "done"
    assert [row.state for row in rows(adapter, schema.groups)] == ["closed"]


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout
