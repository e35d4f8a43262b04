# SPDX-License-Identifier: Apache-2.0
"""versions name the first one of their entity; patients of a study can be told apart"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("configuration", sa.Column("first_version", sa.Integer))
    # An entity lives from its creation to its deletion: its versions since the last tombstone.
    op.execute(
        "UPDATE configuration SET first_version = life.first_version FROM ("
        " SELECT version, min(version) OVER (PARTITION BY kind, key, ended) AS first_version FROM ("
        "  SELECT version, kind, key, coalesce(sum(CASE WHEN deleted THEN 1 ELSE 0 END) OVER ("
        "   PARTITION BY kind, key ORDER BY version"
        "   ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS ended"
        "  FROM configuration) AS counted"
        ") AS life WHERE life.version = configuration.version"
    )
    op.create_index("ix_groups_key", "groups", ["key"])
    op.add_column(
        "groups",
        sa.Column("patient_conflict", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.add_column("arrivals", sa.Column("patient", sa.String(32)))
