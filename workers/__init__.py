# SPDX-License-Identifier: Apache-2.0
"""The stages of the road, one module each, in the order that `celeryconfig` gives."""
