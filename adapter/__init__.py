# SPDX-License-Identifier: Apache-2.0
"""The DICOM adapter's front end, and the kernel that it shares with the workers."""

__version__ = "0.1.0"
