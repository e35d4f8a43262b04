# SPDX-License-Identifier: Apache-2.0
"""A clean machine passes: one list says what tests need, and is what is installed and checked."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import peers
from tests.conftest import pytest_runtest_setup

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for path in (ROOT / "tests").rglob("*.py") if path.name != "peers.py")

#: Other ways to skip a test, or to ask whether a program is there.
OTHER_WAYS = {
    *("skip", "skipif", "skipIf", "skipUnless", "skipTest", "SkipTest", "Skipped"),
    *("importorskip", "xfail", "which"),
}


def names(tree: ast.AST) -> Iterator[str]:
    """Return the names that code uses of others: attributes, and what it imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name


def needed(tree: ast.AST) -> set[str]:
    """Return the packages that code asks for, by the mark or by the function."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    asks = [call for call in calls if ast.unparse(call.func).split(".")[-1] in {"need", "needs"}]
    arguments = [argument for call in asks for argument in call.args]
    return {argument.value for argument in arguments if isinstance(argument, ast.Constant)}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_test_skips_for_what_is_on_the_list_only(module: Path) -> None:
    """A module skips by `needs`, `need` and `cannot` only, and asks for the programs it starts."""
    if module == Path(__file__):
        return  # it names the other ways
    tree = ast.parse(module.read_text())
    asked = needed(tree)
    words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}

    assert not OTHER_WAYS & set(names(tree))
    assert asked <= set(peers.PEERS)
    started = {package for package, peer in peers.PEERS.items() if words & set(peer.programs)}
    assert started <= asked


def test_everything_on_the_list_is_needed() -> None:
    """Nothing is installed that no test asks for."""
    asked = [needed(ast.parse(module.read_text())) for module in MODULES]

    assert set().union(*asked) >= set(peers.PEERS)


# -- a machine without them ------------------------------------------------------------------------

#: What may be raised: a skip that no test expects would skip that test.
EITHER = (pytest.fail.Exception, pytest.skip.Exception)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The root of a machine on which nothing is installed."""
    (tmp_path / "usr/sbin").mkdir(parents=True)
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "usr/sbin"))
    return tmp_path


@pytest.mark.parametrize("package", peers.PEERS)
def test_a_missing_peer_fails_in_ci_and_skips_elsewhere(
    package: str, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is missing, the test says which Debian package, and fails where CI=true."""
    for ci, outcome in (("true", pytest.fail.Exception), ("", pytest.skip.Exception)):
        monkeypatch.setenv("CI", ci)
        with pytest.raises(EITHER, match=f"not installed: Debian's {package} ") as raised:
            peers.need(package)
        assert raised.type is outcome


def test_a_mark_asks_for_its_peer(
    bare: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A test marked `needs` fails before it begins, where CI=true and the peer is missing."""
    monkeypatch.setenv("CI", "true")
    pytest_runtest_setup(request.node)

    request.node.add_marker(pytest.mark.needs("prometheus"))

    with pytest.raises(EITHER, match=r"Debian's prometheus \(promtool\)") as raised:
        pytest_runtest_setup(request.node)
    assert raised.type is pytest.fail.Exception


class Apt:
    """Stands in for apt-get and update-rc.d: notes what they are told, and who may start then."""

    def __init__(self, root: Path) -> None:
        self.policy = root / "usr/sbin/policy-rc.d"
        self.calls: list[tuple[str, ...]] = []
        self.forbidden = False

    def __call__(self, command: list[str], **_options: object) -> None:
        words = tuple(word for word in command if not word.startswith("-"))
        self.calls.append(words)
        if "install" in words:
            self.forbidden = "exit 101" in self.policy.read_text()


def test_what_is_missing_is_installed_without_its_services(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The installation names every missing package; nothing starts, now or with the machine."""
    apt = Apt(bare)
    (bare / "usr/sbin/apt-get").touch(mode=0o755)
    for name in peers.PEERS["dcmtk"].programs:
        (bare / "usr/sbin" / name).touch(mode=0o755)
    monkeypatch.setattr(subprocess, "run", apt)
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    assert peers.install() == ""

    update, install, *disabled = apt.calls
    assert update[-1] == "update"
    assert set(install[install.index("install") + 1 :]) == set(peers.PEERS) - {"dcmtk"}
    assert apt.forbidden
    assert not apt.policy.exists()
    assert set(disabled) == {
        ("update-rc.d", service, "disable") for service in ("orthanc", "postgresql", "prometheus")
    }


def test_who_may_not_install_is_told_what_is_missing(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without root nothing is tried; the packages are named."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    said = peers.install()

    assert said.startswith("Missing: Debian's chromium dcmtk ")
    assert "fail where CI=true" in said
