# SPDX-License-Identifier: Apache-2.0
"""The whole way once, on real files: the demo, its modality, its pipeline and its PACS."""
