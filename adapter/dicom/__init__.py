# SPDX-License-Identifier: Apache-2.0
"""DICOM itself: what is on the wire and in files, without a socket, a setting or a decision.

::

    dictionary                       keywords, VRs and names of PS3.6
    uids  ae_titles  tags            the rules of their values, and the well-known ones
    transfer_syntaxes                the few whose kind matters
    implementation                   how we name ourselves
    storage_classes                  which SOP classes are stored
    pdus  rejections                 the upper layer's PDUs, read with suspicion
    command_sets  statuses           DIMSE's command sets and what a status means
    part10                           file meta information, written and read
    elements  element_search         the headers of data elements, found under limits
    file_start  partial_header       what must be known of a file to send it, or can of a bad one
    instance  header  leading_uids   what is read of a data set, under limits

The SCP, the SCU, the workers and the demo stand on it; it imports nothing of the adapter but its
errors.  Only `storage_classes` imports pynetdicom; only `header` imports pydicom, and `dictionary`
when it is asked.  So workers, and the process that reads headers, import no more than they need.
"""
