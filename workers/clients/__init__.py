# SPDX-License-Identifier: Apache-2.0
"""The only modules of the workers that talk to a peer or run another program."""
