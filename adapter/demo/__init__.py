# SPDX-License-Identifier: Apache-2.0
"""The whole road once, on real files: the demo, its modality, its pipeline and its PACS."""
