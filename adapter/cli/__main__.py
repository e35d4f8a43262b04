# SPDX-License-Identifier: Apache-2.0
"""``python -m adapter.cli`` is `dicom-adapter`."""

from adapter.cli import main

if __name__ == "__main__":
    main()
