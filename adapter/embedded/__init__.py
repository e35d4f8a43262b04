# SPDX-License-Identifier: Apache-2.0
"""Everything on one machine: our own Redis, the roles as child processes, and their supervisor.

The roles are the same programs that run separately in a cluster; they know nothing of this package.
"""
