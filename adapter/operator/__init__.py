# SPDX-License-Identifier: Apache-2.0
"""`dicom-adapter operator`: applies custom resources of Kubernetes, and writes their status.

It is level-triggered: it compares the present resources with the present configuration in the
ledger.  So a missed event, a second operator or a restart does no harm, and there is no leader.

===========  ====================================================================================
resources    a custom resource, as it comes from the API server
plan         decides which resources are in force; pure functions
client       the only module that connects to the API server
collection   a copy of the resources of one kind
watch        keeps a collection up to date: list, watch, start again
applying     applies the collections to the ledger
status       writes the outcome into the resources' status
metrics      metrics for Prometheus
main         the process
releasing    hands everything over to people
passwords    gives a Secret the passwords that it lacks
===========  ====================================================================================
"""

from adapter.operator.main import Operator, serve
from adapter.operator.passwords import create_passwords
from adapter.operator.releasing import release

__all__ = ["Operator", "create_passwords", "release", "serve"]
