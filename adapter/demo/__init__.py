# SPDX-License-Identifier: Apache-2.0
"""The demo: runs all stages once on real files, with a modality, a pipeline and a PACS."""
