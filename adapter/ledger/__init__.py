# SPDX-License-Identifier: Apache-2.0
"""The ledger: facts and clocks of the pipeline stages, in SQL, and the few verbs that change them.

One module for each kind of fact; a verb is one transaction, with no file or network work inside it.
"""

from adapter.ledger.database import Ledger

__all__ = ["Ledger"]
