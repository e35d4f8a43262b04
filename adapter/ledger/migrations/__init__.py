# SPDX-License-Identifier: Apache-2.0
"""The ledger's revisions, run by Alembic."""
