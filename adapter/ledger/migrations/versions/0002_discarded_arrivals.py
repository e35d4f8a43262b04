# SPDX-License-Identifier: Apache-2.0
"""arrivals that no group takes are called discarded; a group can be parked, with a reason"""

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
