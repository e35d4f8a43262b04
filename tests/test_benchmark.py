# SPDX-License-Identifier: Apache-2.0
"""The benchmark runs, in a size that measures nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.needs("dcmtk")
def test_the_stages_are_measured():
    """`make bench-stages ARGS=--smoke` sends two studies through all stages and prints a row."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.stages", "--smoke"],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| SQLite | 1 |") == 1


@pytest.mark.needs("gcc", "libc6-dev", "dcmtk")
@pytest.mark.parametrize(
    ("load", "lines"),
    [
        ("MB", ["### 3 MB, 1 association", "| this adapter | file and directory |"]),
        ("sending", ["| 16,384 | this adapter |", "| 131,072 | DCMTK storescu |"]),
        ("stages", ["| with notification, grouping and reclamation |", "instances waited;"]),
    ],
)
def test_the_benchmark_runs(tmp_path, load, lines):
    """`make bench ARGS=--smoke` measures, prints its tables, and leaves nothing behind."""
    command = [sys.executable, "-m", "benchmarks.run", "--smoke", "--folder", tmp_path]
    done = subprocess.run(
        [*command, "--only", "this adapter", "--load", load],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert [done.stdout.count(line) for line in lines] == [1] * len(lines)
    assert list(tmp_path.iterdir()) == []
