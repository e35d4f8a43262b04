# SPDX-License-Identifier: Apache-2.0
"""The pipeline stages, one module each, in the order that `celeryconfig` gives."""
