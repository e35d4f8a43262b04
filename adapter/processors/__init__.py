# SPDX-License-Identifier: Apache-2.0
"""Plug-ins: job processors, which own instances, and observers, which are told of them."""
