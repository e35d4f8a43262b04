# SPDX-License-Identifier: Apache-2.0
"""`dicom-adapter operator`: applies custom resources of Kubernetes, and writes their status.

Level, not edge: whatever happened, what the resources say now is compared with what the ledger says
now.  So a missed event, a second operator or a restart costs nothing, and there is no leader.

===========  ====================================================================================
resources    what a custom resource says, as it comes from the API server
plan         which of them are in force, pure
client       the only module that talks to the API server
collection   what is known of the resources of one kind
watch        keeps a collection up to date: list, watch, begin anew
applying     brings the ledger to what the collections say
status       writes what came of it into the resources
metrics      what Prometheus is told
main         the process
releasing    hands everything over to people
===========  ====================================================================================
"""

from adapter.operator.main import Operator, serve
from adapter.operator.releasing import release

__all__ = ["Operator", "release", "serve"]
