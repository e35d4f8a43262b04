#!/opt/dicom-adapter/bin/python3 -IS
# SPDX-License-Identifier: Apache-2.0
"""Checks the health of a role in this container: ``healthy 9090/ready``, exit code 0 or 1.

Without a path, an open port is healthy.

It is started every few seconds in every container, so it imports very little.
"""

import socket
import sys

#: Seconds that the role has to answer; the health check's own time-out is longer.
_TIMEOUT_SECONDS = 4.0


def main() -> None:
    """Request the path, and exit with an error unless the answer is 200."""
    port, _, path = sys.argv[1].partition("/")
    with socket.create_connection(("127.0.0.1", int(port)), timeout=_TIMEOUT_SECONDS) as connection:
        if not path:
            return
        connection.sendall(f"GET /{path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode("ascii"))
        answer = connection.makefile("rb").readline(100)
    words = answer.split()
    if len(words) < 2 or words[1] != b"200":
        sys.exit(f"{sys.argv[1]}: {answer.decode('ascii', 'replace').strip() or 'no answer'}")


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
