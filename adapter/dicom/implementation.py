# SPDX-License-Identifier: Apache-2.0
"""How the adapter names itself to peers and in files."""

from __future__ import annotations

#: Our implementation class UID (PS3.7 Annex D.3.3.2), made from a UUID (PS3.5 Annex B.2).
IMPLEMENTATION_CLASS_UID = "2.25.121029337127240437530949026434168125969"
#: Our implementation version name (PS3.7 Annex D.3.3.2).
IMPLEMENTATION_VERSION_NAME = "DICOM_ADAPTER_1"
