# SPDX-License-Identifier: Apache-2.0
"""A modality that sends on while processes die, and repeats files without a Success."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Self

from adapter.models import DicomDestination, Outcome
from adapter.scu.association import AssociationBroken, AssociationRejected, Unreachable
from adapter.scu.files import examine
from adapter.scu.store import store
from adapter.settings import Scu
from tests.support_stack import write_study

_SCU = Scu(ae_title="MODALITY", connect_seconds=2, association_seconds=5, response_seconds=10)


class Modality:
    """Sends one small study after another, each to the next of several receivers.

    Parameters
    ----------
    folder : Path
        Where its studies are made.
    ports : list of int
        The receivers' ports; one that fails is left for the next.
    instances : int
        Instances of a study.
    pause : float, seconds
        Between two studies.

    Attributes
    ----------
    acknowledged : set of str
        Files, by name of study and file, whose instances were answered with Success.
    """

    def __init__(self, folder: Path, ports: list[int], instances: int = 3, pause: float = 0.5):
        self._folder = folder
        self._receivers = itertools.cycle(
            DicomDestination(name="SCP", ae_title="BRAIN", host_ip="127.0.0.1", port=port)
            for port in ports
        )
        self._instances = instances
        self._pause = pause
        self.acknowledged: set[str] = set()
        self.studies = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="modality", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Finish the study that is being sent, and send no other."""
        self._done.set()
        self._thread.join(90)
        assert not self._thread.is_alive(), "the modality still waits for a Success"

    def _run(self) -> None:
        while not self._done.is_set():
            self.send(write_study(self._folder / f"{self.studies:04d}", self._instances))
            self.studies += 1
            self._done.wait(self._pause)

    def send(self, paths: list[Path]) -> None:
        """Send files until every instance was answered with Success."""
        left = {
            number: examine(path.parent, path.name, number) for number, path in enumerate(paths)
        }
        while left:
            try:
                for result in store(list(left.values()), next(self._receivers), _SCU):
                    if result.outcome is Outcome.STORED:
                        self.acknowledged.add(left.pop(result.file.number).sop_instance_uid)
            except (Unreachable, AssociationRejected, AssociationBroken):
                threading.Event().wait(0.1)  # as a modality waits before it tries again
