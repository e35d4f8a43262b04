# SPDX-License-Identifier: Apache-2.0
"""Rejections of an association: result, source and reason of an A-ASSOCIATE-RJ, and their words.

References
----------
PS3.8 section 9.3.4, Table 9-21.
"""

from __future__ import annotations

#: The three numbers of an A-ASSOCIATE-RJ: result, source, reason.
Code = tuple[int, int, int]

PERMANENT, TRANSIENT = 1, 2
#: Sources: the service user, and the two parts of the service provider.
USER, ACSE, PRESENTATION = 1, 2, 3

NO_REASON_GIVEN: Code = (PERMANENT, USER, 1)
APPLICATION_CONTEXT_NOT_SUPPORTED: Code = (PERMANENT, USER, 2)
CALLING_AE_TITLE_NOT_RECOGNIZED: Code = (PERMANENT, USER, 3)
CALLED_AE_TITLE_NOT_RECOGNIZED: Code = (PERMANENT, USER, 7)
#: By the provider, for a request that breaks the rules of the protocol.
INVALID_REQUEST: Code = (PERMANENT, ACSE, 1)
PROTOCOL_VERSION_NOT_SUPPORTED: Code = (PERMANENT, ACSE, 2)
TEMPORARY_CONGESTION: Code = (TRANSIENT, PRESENTATION, 1)
LOCAL_LIMIT_EXCEEDED: Code = (TRANSIENT, PRESENTATION, 2)

_WORDS = {
    (USER, 1): "no reason given",
    (USER, 2): "the application context is not supported",
    (USER, 3): "the calling AE title is not recognised",
    (USER, 7): "the called AE title is not recognised",
    (ACSE, 1): "no reason given by its upper layer",
    (ACSE, 2): "the protocol version is not supported",
    (PRESENTATION, 1): "temporary congestion",
    (PRESENTATION, 2): "its local limit is exceeded",
}


def words(code: Code) -> str:
    """Return what a rejection says, in words."""
    return _WORDS.get(code[1:], "a reason unknown to the Standard")
