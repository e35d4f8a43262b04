# SPDX-License-Identifier: Apache-2.0
"""Alembic's environment: runs the revisions on the connection that the ledger hands over.

The ledger has begun the transaction that they all run in, and ends it.
"""

from alembic import context

from adapter.ledger.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
