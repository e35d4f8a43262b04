# SPDX-License-Identifier: Apache-2.0
"""The side that calls: an association that we ask for, and the requests made on it.

::

    connection    one TCP connection on which nothing waits without a deadline
    association   A-ASSOCIATE, A-RELEASE, A-ABORT; C-ECHO and C-STORE, one at a time

What to send, and what an answer means for it, is ``workers.clients.store_scu``'s.
"""
