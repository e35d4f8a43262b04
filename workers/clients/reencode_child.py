# SPDX-License-Identifier: Apache-2.0
"""The child process that encodes a data set anew: bytes in, bytes out.

It decodes what a pipeline wrote, which may be hostile, so that only this process dies of it.
"""

from __future__ import annotations

import resource
import sys

from pydicom import config
from pydicom.filebase import DicomFileLike
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from adapter.dicom.transfer_syntaxes import IMPLICIT_VR_LITTLE_ENDIAN


def main() -> None:
    """Read a data set in the first syntax from standard input, and write it in the second."""
    source, target, memory = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with config.disable_value_validation():
        ds = read_dataset(sys.stdin.buffer, source == IMPLICIT_VR_LITTLE_ENDIAN, True)
        file = DicomFileLike(sys.stdout.buffer)
        file.is_little_endian, file.is_implicit_VR = True, target == IMPLICIT_VR_LITTLE_ENDIAN
        write_dataset(file, ds)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
