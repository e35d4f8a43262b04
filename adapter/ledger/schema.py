# SPDX-License-Identifier: Apache-2.0
"""The ledger's tables: every fact that must not be lost.  The bytes themselves are in the spool.

Times are seconds since 1970 (UTC) by the database's clock; only `received_at` is the SCP's.  A row
that a worker has claimed carries a lease: a token, an expiry, and how often the lease ran out or
the row defeated its worker (`adapter.ledger.attempts`).  No column contains patient data: UIDs, AE
titles, counts, sizes, states and hashes only.

========================  =====================================================================
table                     a row is
========================  =====================================================================
meta                      a fact about the ledger itself
configuration             one version of an AE title, a source or a destination
arrivals                  an acknowledged file, and the instance that it is
groups                    the instances of one grouping value, collected for one set of jobs
jobs                      one pipeline's work on one group
cancellations             a job's run that a platform still has to end and forget
tasks, task_files         results to send (the Results Service's term), and their files
exports, receipts         a task for one destination, and the outcome of each file there
holds                     a destination hold (circuit breaker): it cannot be reached, exports wait
events                    an entry of a study's timeline
========================  =====================================================================
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    text,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import expression

from adapter.models import EMBEDDED

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class now(expression.FunctionElement[float]):  # noqa: N801 - reads as the SQL function it is
    """The database's clock: seconds since 1970, UTC, to the millisecond at least.

    It is constant within a statement, so an index can be searched by it.
    """

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _now_sqlite(_element: Any, _compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _now_postgresql(_element: Any, _compiler: Any, **_: Any) -> str:
    return "extract(epoch from statement_timestamp())::double precision"


def _lease() -> list[Column[Any]]:
    return [
        Column("lease_token", String(32)),
        Column("lease_until", Double),
        Column("lease_expiries", Integer, nullable=False, server_default="0"),
    ]


meta = Table(
    "meta",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", String, nullable=False),
)

configuration = Table(
    "configuration",
    metadata,
    Column("version", Integer, primary_key=True, autoincrement=True),
    Column("kind", String(16), nullable=False),
    Column("key", String(64), nullable=False),
    Column("body", JSON, nullable=False),
    Column("owner", String(256), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("current", Boolean, nullable=False),
    Column("deleted", Boolean, nullable=False),
    #: the version that its entity was created with; NULL: this one
    Column("first_version", Integer),
    sqlite_autoincrement=True,
)
Index(
    "uq_configuration_current",
    configuration.c.kind,
    configuration.c.key,
    unique=True,
    sqlite_where=text("current"),
    postgresql_where=text("current"),
)

groups = Table(
    "groups",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("version", Integer, ForeignKey("configuration.version"), nullable=False),
    Column("called_ae_title", String(16), nullable=False),
    Column("key", String(64), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("opened_at", Double, nullable=False),
    Column("newest_at", Double, nullable=False),
    #: when the quiet time ends, when the maximum wait ends, and when to check next
    Column("due_at", Double, nullable=False),
    Column("maximum_at", Double, nullable=False),
    Column("look_at", Double, nullable=False),
    Column("closed_at", Double),
    Column("close_reason", String(32)),
    Column("instances", Integer, nullable=False, server_default="0"),
    Column("reclaimed_at", Double),
    #: whether a study of it has instances of several patients
    Column("patient_conflict", Boolean, nullable=False, server_default=expression.false()),
    #: why it is parked, or why its files cannot be deleted: a code, and a sentence for people
    Column("reason", String(32)),
    Column("message", String(500)),
    *_lease(),
    UniqueConstraint("version", "key", "generation"),
    Index("ix_groups_state_look_at", "state", "look_at"),
    Index("ix_groups_key", "key"),
)
Index(
    "uq_groups_open",
    groups.c.version,
    groups.c.key,
    unique=True,
    sqlite_where=text("state = 'open'"),
    postgresql_where=text("state = 'open'"),
)

arrivals = Table(
    "arrivals",
    metadata,
    Column("id", String(80), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("version", Integer, nullable=False),
    Column("association", String(12), nullable=False),
    Column("received_at", Double, nullable=False),
    Column("registered_at", Double),
    Column("calling_ae_title", String(16)),
    Column("called_ae_title", String(16)),
    Column("sop_class_uid", String(64)),
    Column("sop_instance_uid", String(64)),
    Column("study_instance_uid", String(64)),
    Column("series_instance_uid", String(64)),
    Column("transfer_syntax_uid", String(64)),
    Column("size", BigInteger),
    Column("digest", String(64)),
    #: a keyed hash that tells the patients of a study apart, and nothing else
    Column("patient", String(32)),
    Column("group_id", String(36), ForeignKey("groups.id")),
    #: why it is discarded or quarantined: a code, and a sentence for people
    Column("reason", String(32)),
    Column("message", String(500)),
    #: when its file was deleted; NULL while the file exists
    Column("deleted_at", Double),
    Column("attempts", Integer, nullable=False, server_default="0"),
    *_lease(),
    Index("ix_arrivals_same", "called_ae_title", "sop_instance_uid"),
    Index("ix_arrivals_group_id", "group_id"),
    Index("ix_arrivals_study", "study_instance_uid", "id"),
    Index("ix_arrivals_state_deleted_at", "state", "deleted_at"),
)
# A group has one instance of a SOP Instance UID, however many workers register.
Index(
    "uq_arrivals_instance_of_group",
    arrivals.c.group_id,
    arrivals.c.sop_instance_uid,
    unique=True,
    sqlite_where=text("state = 'registered'"),
    postgresql_where=text("state = 'registered'"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("group_id", String(36), ForeignKey("groups.id"), nullable=False),
    Column("pipeline", String(64), nullable=False),  # the <name> of the setting pipeline-<name>
    Column("pipeline_id", String(256), nullable=False),
    Column("name", String(63), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("retry_delay", Double, nullable=False),  # seconds between runs (jobRetryDelay)
    Column("state", String(16), nullable=False),
    Column("parked_in", String(16)),  # its state when it was parked
    Column("outcome", String(32)),  # of the last try: succeeded, exit-code, timed-out, ...
    Column("message", String(500)),
    Column("exit_code", Integer),
    Column("tries", Integer, nullable=False, server_default="0"),  # failed tries of this step
    Column("due_at", Double, nullable=False),
    Column("platform", String(64), nullable=False, server_default=EMBEDDED),
    Column("platform_job_id", String(256)),
    #: what other platforms than the embedded one are asked about: which run it is, how many runs
    #: have failed, since when the platform has it, and since when it runs there
    Column("run", Integer, nullable=False, server_default="1"),
    Column("failed_runs", Integer, nullable=False, server_default="0"),
    Column("handed_over_at", Double),
    Column("running_since", Double),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    *_lease(),
    UniqueConstraint("group_id", "pipeline"),
    Index("ix_jobs_state_due_at", "state", "due_at"),
)

cancellations = Table(
    "cancellations",
    metadata,
    Column("id", String(64), primary_key=True),  # the run's id: `adapter.models.run_id`
    Column("job_id", String(36), ForeignKey("jobs.id"), nullable=False),
    Column("run", Integer, nullable=False),
    Column("platform", String(64), nullable=False),
    Column("platform_job_id", String(256)),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("due_at", Double, nullable=False),
    Column("created_at", Double, nullable=False),
    *_lease(),
    Index("ix_cancellations_job_id", "job_id"),
    Index("ix_cancellations_due_at", "due_at"),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("job_id", String(64)),  # a job of ours, or the remote platform's job id
    Column("agent", String(64), nullable=False),
    Column("remote", Boolean, nullable=False),
    Column("remote_retries", Integer, nullable=False, server_default="0"),
    Column("report", String(16), nullable=False),
    Column("report_success", Boolean),
    Column("report_retry_later", Boolean),
    Column("report_due_at", Double),
    Column("report_failures", Integer, nullable=False, server_default="0"),  # unanswered reports
    Column("created_at", Double, nullable=False),
    Index("ix_tasks_job_id", "job_id"),
    Index("ix_tasks_report", "report"),
)

task_files = Table(
    "task_files",
    metadata,
    Column("task_id", String(64), ForeignKey("tasks.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("path", String(1024), nullable=False),  # under the job's result folder or the root
    Column("size", BigInteger),
    Column("sop_class_uid", String(64)),
    Column("sop_instance_uid", String(64)),
    Column("transfer_syntax_uid", String(64)),
    Column("digest", String(64)),
    Column("problem", String(200)),  # why it cannot be sent at all
)

exports = Table(
    "exports",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("task_id", String(64), ForeignKey("tasks.id"), nullable=False),
    Column("destination", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("due_at", Double, nullable=False),
    Column("waiting_since", Double),  # since when it waits for an unreachable destination
    Column("failed", Boolean, nullable=False),  # the last try was over the failure threshold
    Column("reason", String(32)),
    Column("message", String(500)),
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    *_lease(),
    UniqueConstraint("task_id", "destination"),
    Index("ix_exports_state_due_at", "state", "due_at"),
)

receipts = Table(
    "receipts",
    metadata,
    Column("export_id", String(36), ForeignKey("exports.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("outcome", String(16), nullable=False),
    Column("status", Integer),  # the answer's number, if the destination's protocol has one
    Column("reason", String(200)),  # the answer in words
    Column("tries", Integer, nullable=False),
    Column("updated_at", Double, nullable=False),
)

holds = Table(
    "holds",
    metadata,
    Column("destination", String(64), primary_key=True),
    Column("since", Double, nullable=False),
    Column("until", Double, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("reason", String(200), nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Double, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("association", String(12)),
    Column("group_id", String(36)),
    Column("job_id", String(36)),
    Column("export_id", String(36)),
    Column("detail", JSON, nullable=False),
    Index("ix_events_association", "association"),
    Index("ix_events_group_id", "group_id"),
    Index("ix_events_job_id", "job_id"),
    Index("ix_events_export_id", "export_id"),
    Index("ix_events_at", "at"),
    sqlite_autoincrement=True,
)
