# SPDX-License-Identifier: Apache-2.0
"""arrivals that no group takes are called discarded; groups can be parked; jobs have a platform"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("groups", sa.Column("reason", sa.String(length=32), nullable=True))
    op.add_column("groups", sa.Column("message", sa.String(length=500), nullable=True))
    # Workers of the release before may still write the old name: reclamation reads both.
    op.execute("UPDATE arrivals SET state = 'discarded' WHERE state = 'unwanted'")
    op.add_column(
        "jobs", sa.Column("platform", sa.String(64), nullable=False, server_default="embedded")
    )
    op.add_column("jobs", sa.Column("run", sa.Integer, nullable=False, server_default="1"))
    op.add_column("jobs", sa.Column("failed_runs", sa.Integer, nullable=False, server_default="0"))
    op.add_column("jobs", sa.Column("handed_over_at", sa.Double))
    op.add_column("jobs", sa.Column("running_since", sa.Double))
    op.create_table(
        "cancellations",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("job_id", sa.String(36), nullable=False),
        sa.Column("run", sa.Integer, nullable=False),
        sa.Column("platform", sa.String(64), nullable=False),
        sa.Column("platform_job_id", sa.String(256)),
        sa.Column("tries", sa.Integer, nullable=False, server_default="0"),
        sa.Column("due_at", sa.Double, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("lease_token", sa.String(32)),
        sa.Column("lease_until", sa.Double),
        sa.Column("lease_expiries", sa.Integer, nullable=False, server_default="0"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_cancellations_job_id"),
        sa.PrimaryKeyConstraint("id", name="pk_cancellations"),
    )
    op.create_index("ix_cancellations_job_id", "cancellations", ["job_id"])
    op.create_index("ix_cancellations_due_at", "cancellations", ["due_at"])
