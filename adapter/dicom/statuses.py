# SPDX-License-Identifier: Apache-2.0
"""The statuses (0000,0900) of C-STORE and C-ECHO responses: what we answer, what an answer means.

===========  =====================================  ==============  ===========================
status       meaning                                our SCP says    to our SCU it means
===========  =====================================  ==============  ===========================
0000         success                                yes             stored
0001         optional attributes not supported                      stored (warning)
0107         attribute list error                                   stored (warning)
0110         processing failure                     our own fault   may pass
0111         duplicate SOP instance                                 stored, if sent before;
                                                                    else may pass
0116         attribute value out of range                           stored (warning)
0122         SOP class not supported                yes             refused
0124         not authorised                                         refused
0211         unrecognized operation                 yes             may pass
0212         mistyped argument                      yes             may pass
A7xx         out of resources                       A700            may pass
A9xx         data set does not match SOP class      A900            may pass
Bxxx         warning: stored, perhaps coerced                       stored (warning)
Cxxx         cannot understand                      C000            may pass
others                                                              may pass
===========  =====================================  ==============  ===========================

What may pass is tried again, unless ``dicom > scu > export > permanentStatuses`` names it.  What
makes our SCP say a status is in ``adapter.scp.store`` and ``adapter.scp.dimse``; what the SCU
does about one is in ``adapter.scu.store``.

References
----------
PS3.7 Annex C (0xxx); PS3.4 Table B.2-1 (Axxx, Bxxx, Cxxx).
"""

from __future__ import annotations

from collections.abc import Collection

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
DUPLICATE_SOP_INSTANCE = 0x0111
SOP_CLASS_NOT_SUPPORTED = 0x0122
NOT_AUTHORISED = 0x0124
UNRECOGNIZED_OPERATION = 0x0211
MISTYPED_ARGUMENT = 0x0212
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH_SOP_CLASS = 0xA900
CANNOT_UNDERSTAND = 0xC000

#: Every status that our SCP answers.
ANSWERED = (
    SUCCESS,
    OUT_OF_RESOURCES,
    DOES_NOT_MATCH_SOP_CLASS,
    CANNOT_UNDERSTAND,
    PROCESSING_FAILURE,
    SOP_CLASS_NOT_SUPPORTED,
    UNRECOGNIZED_OPERATION,
    MISTYPED_ARGUMENT,
)

#: The warnings of PS3.7 Annex C; those of PS3.4 are all of Bxxx.
_WARNINGS = frozenset({0x0001, 0x0107, 0x0116})


def is_stored(status: int, *, repeat: bool) -> bool:
    """Tell whether the peer has the instance.

    Parameters
    ----------
    status : int
        The status of a C-STORE response.
    repeat : bool
        Whether the instance may have been sent there before.  A duplicate is then our own.
    """
    if status == DUPLICATE_SOP_INSTANCE:
        return repeat
    return status == SUCCESS or status in _WARNINGS or status >> 12 == 0xB


def is_refused(status: int, permanent: Collection[str] = ()) -> bool:
    """Tell whether the peer will never take the instance; another failure may pass.

    Parameters
    ----------
    status : int
        The status of a C-STORE response.
    permanent : collection of str, optional
        Further statuses that are not worth another try, as four hexadecimal digits, of which the
        last may be ``x`` for any: ``"A900"``, ``"Cxxx"``.
    """
    digits = f"{status:04X}"
    return status in {SOP_CLASS_NOT_SUPPORTED, NOT_AUTHORISED} or any(
        digits.startswith(one.rstrip("xX").upper()) for one in permanent
    )
