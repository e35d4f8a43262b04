# SPDX-License-Identifier: Apache-2.0
"""The child process that reads headers: a line of JSON in, a line of JSON out.

It imports no more than it needs, because every thread that reads headers starts one.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path

from adapter.dicom.element_search import HeaderLimits
from adapter.dicom.header import read_header
from adapter.errors import UnreadableInstance


def _answer(line: bytes, limits: HeaderLimits) -> dict[str, object]:
    request = json.loads(line)
    try:
        instance = read_header(Path(request["path"]), request["tags"], limits)
    except UnreadableInstance as error:
        return {"unreadable": [str(error), error.code]}
    except FileNotFoundError:
        return {"missing": True}
    except OSError as error:
        return {"failed": error.errno}
    return {"instance": asdict(instance)}


def main() -> None:
    """Answer until the parent closes our standard input."""
    limits = json.loads(sys.argv[1])
    memory = limits.pop("memory_bytes")
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bounds = HeaderLimits(**limits)
    _say("ready")
    for line in sys.stdin.buffer:
        _say(_answer(line, bounds))


def _say(what: object) -> None:
    sys.stdout.buffer.write(json.dumps(what).encode() + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
