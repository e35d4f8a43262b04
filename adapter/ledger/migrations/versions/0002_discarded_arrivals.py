# SPDX-License-Identifier: Apache-2.0
"""arrivals that no group takes are called discarded"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Workers of the release before may still write the old name: reclamation reads both.
    op.execute("UPDATE arrivals SET state = 'discarded' WHERE state = 'unwanted'")
