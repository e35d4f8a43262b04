# SPDX-License-Identifier: Apache-2.0
"""Read-only queries of the ledger, for REST, the command line and the health report.

Each query is one reading transaction.  Lists come in pages, newest first.
"""

from adapter.ledger.queries.counts import count_retrying, count_states
from adapter.ledger.queries.due import Questions, due
from adapter.ledger.queries.exports import find_export, list_exports
from adapter.ledger.queries.facts import LARGEST_PAGE, Page
from adapter.ledger.queries.groups import list_groups
from adapter.ledger.queries.ids import UnclearId, whole_ids
from adapter.ledger.queries.jobs import find_job, list_jobs
from adapter.ledger.queries.progress import attention, unfinished
from adapter.ledger.queries.studies import list_studies
from adapter.ledger.queries.timeline import find_timeline

__all__ = [
    "LARGEST_PAGE",
    "Page",
    "Questions",
    "UnclearId",
    "attention",
    "count_retrying",
    "count_states",
    "due",
    "find_export",
    "find_job",
    "find_timeline",
    "list_exports",
    "list_groups",
    "list_jobs",
    "list_studies",
    "unfinished",
    "whole_ids",
]
