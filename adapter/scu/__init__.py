# SPDX-License-Identifier: Apache-2.0
"""The side that calls: DICOM's SCU, for export, for `send` and `echo`, and for the demo.

::

    connection     one TCP connection on which nothing waits without a deadline
        |
    association    A-ASSOCIATE, A-RELEASE, A-ABORT; C-ECHO and C-STORE, one at a time
        |
    echo           Verification, answered in plain words
    contexts       what a destination takes
    files          the files that can be sent
    store          files over as many associations as they need, and what each answer means
        |
    sender         the same, again and again, until every file is answered

Export (``workers.clients.store_scu``) uses `store` and decides itself when to try again.
"""
