# SPDX-License-Identifier: Apache-2.0
"""The release's own passwords: a Secret with what it lacks, made in the cluster and never changed.

A chart that made them would make others each time it is rendered.
"""

from __future__ import annotations

import secrets
import time
from base64 import b64encode
from collections.abc import Sequence

from adapter.errors import TemporaryError
from adapter.log import get_logger
from adapter.operator.client import KubernetesClient, Missing
from adapter.settings import Settings

log = get_logger(__name__)

#: Random bytes of a password; as text it has letters, digits, ``-`` and ``_`` only.
_BYTES = 32
#: Tries, and seconds between them: a new pod's network may need a moment.
_TRIES = 30
_PAUSE_SECONDS = 2.0


def create_passwords(
    settings: Settings, name: str, keys: Sequence[str], pause: float = _PAUSE_SECONDS
) -> list[str]:
    """Give a Secret a random password under each key that it lacks, and return those keys.

    Parameters
    ----------
    settings : Settings
        Which API server and namespace.
    name : str
        The Secret's name; it is created if there is none.
    keys : sequence of str
        The keys that it should have.
    pause : float
        Seconds between tries.

    Raises
    ------
    ConfigurationError
        If there is no API server or no namespace to be found.
    TemporaryError
        If the API server does not accept it, after some tries.
    """
    client = KubernetesClient(settings)
    try:
        for left in reversed(range(_TRIES)):
            try:
                return _create(client, name, keys)
            except TemporaryError as error:  # also if somebody else was faster: look again
                if not left:
                    raise
                log.warning("a Secret cannot be written yet", secret=name, problem=str(error))
                time.sleep(pause)  # for the API server; nothing else is done here
        raise AssertionError("the last try returns or raises")
    finally:
        client.close()


def _create(client: KubernetesClient, name: str, keys: Sequence[str]) -> list[str]:
    try:
        known = client.get_secret(name)
    except Missing:
        client.create_secret(name, {key: _password() for key in keys})
        return list(keys)
    lacking = [key for key in keys if not (known.get("data") or {}).get(key)]
    if lacking:
        # With the version that was read, so that nothing is overwritten.
        version = str(known["metadata"]["resourceVersion"])
        client.add_to_secret(name, {key: _password() for key in lacking}, version)
    return lacking


def _password() -> str:
    return b64encode(secrets.token_urlsafe(_BYTES).encode()).decode()
