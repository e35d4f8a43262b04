# SPDX-License-Identifier: Apache-2.0
"""What every test may ask for."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from adapter import cli as command_line
from adapter import settings as settings_module
from adapter.core import Adapter, open_adapter
from adapter.ledger import Ledger, engines
from adapter.settings import Notification, Settings
from tests import peers
from tests.support_postgresql import PostgreSQL
from workers.clients.headers import HeaderReaders

# A busy machine is slow, and no example is wrong for that.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test marked `every_ledger` on SQLite and on PostgreSQL, or on the one it names."""
    marked = metafunc.definition.get_closest_marker("every_ledger")
    if marked and "database_url" in metafunc.fixturenames:
        chosen = marked.args or ("sqlite", "postgresql")
        metafunc.parametrize("database_url", chosen, indirect=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Ask for the peers that a test marked `needs` names, before its fixtures are made."""
    for mark in item.iter_markers("needs"):
        peers.need(*mark.args)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL server of this session's own."""
    server = PostgreSQL()
    yield server
    server.close()


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> Iterator[str]:
    """The URL of a PostgreSQL database of this test's own, with the ledger's schema."""
    url = postgresql.create_database()
    yield url
    postgresql.drop_database(url)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Where the ledger is: None (SQLite in the data folder), or on PostgreSQL.

    Processes that a test starts find it too, in their environment.
    """
    if getattr(request, "param", "sqlite") == "sqlite":
        return None
    url: str = request.getfixturevalue("postgresql_url")
    monkeypatch.setenv("DICOMADAPTER__DATABASE__URL", url)
    return url


@pytest.fixture
def settings(tmp_path: Path, database_url: str | None) -> Settings:
    """Settings of an adapter of its own, quick to notice things; its disk is never full."""
    loaded = settings_module.load(data=tmp_path / "data")
    return loaded.model_copy(
        update={
            "storage": loaded.storage.model_copy(
                update={"watermark_percent": 100.0, "reserve_space_gb": 0.0}
            ),
            "workers": loaded.workers.model_copy(
                update={"due_work_poll_seconds": 0.2, "lease_seconds": 3.0}
            ),
        }
    )


@pytest.fixture
def cli(settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `dicom-adapter` on the test's data folder; return exit code, output and complaints."""
    # A command names its process, and bounds its connections: this process is the tests'.
    monkeypatch.setattr(engines, "_process", "")
    monkeypatch.setattr(engines, "_most", None)

    def run(*arguments: object, data: Path | None = settings.data) -> tuple[int, str, str]:
        options = [] if data is None else ["--data", str(data)]
        words = ["dicom-adapter", *map(str, arguments), *options]
        monkeypatch.setattr(sys, "argv", words)
        umask = os.umask(0o022)  # a command narrows it for its whole process
        os.umask(umask)
        try:
            with pytest.raises(SystemExit) as end:
                command_line.main()
        finally:
            os.umask(umask)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return int(end.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite ledger of this release's schema: a copy of it takes less time than an upgrade."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    ledger = Ledger(f"sqlite:///{path}")
    ledger.upgrade()
    ledger.close()
    return path


@pytest.fixture
def adapter(settings: Settings, database_url: str | None, empty_ledger: Path) -> Iterator[Adapter]:
    """An adapter on an empty folder."""
    if database_url is None:
        settings.data.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(empty_ledger, settings.data / "ledger.sqlite")
    opened = open_adapter(settings, create=True)
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def _no_header_reader_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End the child processes that stages left to the next batch, as a worker does at its end."""
    made: list[HeaderReaders] = []
    begin = HeaderReaders.__init__

    def remember(readers: HeaderReaders, limits: Notification, **more: bool) -> None:
        begin(readers, limits, **more)
        made.append(readers)

    monkeypatch.setattr(HeaderReaders, "__init__", remember)
    yield
    for readers in made:
        readers.close()
