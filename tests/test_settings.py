# SPDX-License-Identifier: Apache-2.0
"""Settings that were renamed are refused, and the error names the new key."""

from __future__ import annotations

import json

import pytest

from adapter import settings as settings_module
from adapter.errors import ConfigurationError

#: The section, the old key, a valid value, and the new key.
RENAMED = [
    (("dicom", "scp"), "bellInstances", 50, "wakeUpInstances"),
    (("dicom", "scp"), "bellMilliseconds", 50, "wakeUpMilliseconds"),
    (("workers",), "tickSeconds", 2, "dueWorkPollSeconds"),
]
IDS = [old for _, old, _, _ in RENAMED]


@pytest.mark.parametrize(("section", "old", "value", "new"), RENAMED, ids=IDS)
def test_a_renamed_key_in_the_file_is_refused_with_its_new_name(tmp_path, section, old, value, new):
    """The old key is not ignored: the error has its path and the new key, which is accepted."""
    file = tmp_path / "appsettings.json"

    def load(key):
        node = {key: value}
        for name in reversed(section):
            node = {name: node}
        file.write_text(json.dumps({"DicomAdapter": node}), encoding="utf-8")
        return settings_module.load(config=file)

    with pytest.raises(ConfigurationError) as refused:
        load(old)
    loaded = load(new).model_dump(by_alias=True)

    path = " > ".join(["DicomAdapter", *section, old])
    assert refused.value.problems == [f"{path}: removed; use `{new}`"]
    for name in (*section, new):
        loaded = loaded[name]
    assert loaded == value


@pytest.mark.parametrize("renamed", RENAMED, ids=IDS)
def test_a_renamed_environment_variable_is_refused_with_its_new_name(
    tmp_path, monkeypatch, renamed
):
    """The variable of the old key is not ignored either."""
    section, old, value, new = renamed
    variable = "__".join(["DICOMADAPTER", *section, old]).upper()
    monkeypatch.setenv(variable, str(value))

    with pytest.raises(ConfigurationError) as refused:
        settings_module.load(data=tmp_path)

    (problem,) = refused.value.problems
    assert problem.lower().startswith(" > ".join(["DicomAdapter", *section, old]).lower())
    assert problem.endswith(f": removed; use `{new}`")


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "gateway.example"])
def test_rest_stays_on_loopback_unless_told_otherwise(tmp_path, host):
    """It asks nobody for a password, so whoever opens it to a network has to say so."""
    file = tmp_path / "appsettings.json"

    def load(**api):
        file.write_text(json.dumps({"DicomAdapter": {"api": api}}), encoding="utf-8")
        return settings_module.load(config=file).api.host

    with pytest.raises(ConfigurationError, match=r"DicomAdapter > api: .*withoutAuthentication"):
        load(host=host)

    assert load(host=host, withoutAuthentication=True) == host
    assert [load(host=own) for own in ("::1", "127.0.0.9", "localhost")]
    assert settings_module.load(data=tmp_path).metrics.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("pipeline", "destination"), [("lung", "PACS" * 17), ("lung\0", "PACS"), ("l" * 257, "PACS")]
)
def test_names_that_no_ledger_can_hold_are_refused(tmp_path, pipeline, destination):
    """PostgreSQL takes neither a NUL nor more than a column's length: refused at the start."""
    file = tmp_path / "appsettings.json"
    body = {"name": "Lung", "command": ["true"], "destinations": [destination]}
    file.write_text(json.dumps({"DicomAdapter": {"pipelines": {pipeline: body}}}), encoding="utf-8")

    with pytest.raises(ConfigurationError, match="DicomAdapter > pipelines > l"):
        settings_module.load(config=file)
