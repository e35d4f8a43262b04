# SPDX-License-Identifier: Apache-2.0
"""The demo's PACS: a Storage SCP that keeps what it receives, byte for byte.

A file is synced and has its name before Success is answered, so a kill loses nothing confirmed.
"""

from __future__ import annotations

from pathlib import Path

from pydicom.uid import AllTransferSyntaxes
from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
from pynetdicom.dimse_primitives import C_STORE

from adapter.dicom.uids import is_uid
from adapter.files import write_durably

#: C-STORE statuses (PS3.4 Annex B.2.3).
_SUCCESS, _OUT_OF_RESOURCES, _CANNOT_UNDERSTAND = 0x0000, 0xA700, 0xC000


def store(event: evt.Event, folder: Path) -> int:
    """Keep one instance under its SOP Instance UID, and return the status to answer."""
    request = event.request
    if not isinstance(request, C_STORE):
        return _CANNOT_UNDERSTAND
    name = str(request.AffectedSOPInstanceUID)
    if not is_uid(name):
        return _CANNOT_UNDERSTAND
    try:
        write_durably(folder / f"{name}.dcm", event.encoded_dataset())
    except OSError:
        return _OUT_OF_RESOURCES
    return _SUCCESS


def serve(host: str, port: int, folder: Path) -> None:
    """Receive until the process is ended."""
    folder.mkdir(parents=True, exist_ok=True)
    _config.UNRESTRICTED_STORAGE_SERVICE = True  # private SOP classes too
    ae = AE("DEMOPACS")
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(str(context.abstract_syntax), AllTransferSyntaxes)
    ae.start_server((host, port), evt_handlers=[(evt.EVT_C_STORE, store, [folder])])
