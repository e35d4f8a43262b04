# SPDX-License-Identifier: Apache-2.0
"""Reading the settings: the file, the environment, and every problem of both at once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from adapter import plugins
from adapter.errors import ConfigurationError, validation_problems
from adapter.models import EMBEDDED
from adapter.settings.model import CONFIG_VARIABLE, DATA_VARIABLE, Settings

#: Keys of old releases, and what replaces each.
REMOVED = {
    "timeout-group": "the AE title's processor setting `timeout` (seconds)",
    "timeoutGroup": "the AE title's processor setting `timeout` (seconds)",
    "pipeline-mappings": "`dicom-adapter aet add AET --set pipeline-NAME=ID`",
    "pipelineMappings": "`dicom-adapter aet add AET --set pipeline-NAME=ID`",
    "readAeTitlesFromCrd": "`dicom-adapter operator`, or `dicom-adapter aet add`",
    "crdReadIntervals": "nothing: a change is in force within two seconds",
    "read-aetitles-from-crd": "`dicom-adapter operator`, or `dicom-adapter aet add`",
    "read-sources-from-crd": "`dicom-adapter operator`, or `dicom-adapter source add`",
    "read-destinations-from-crd": "`dicom-adapter operator`, or `dicom-adapter destination add`",
    "aeTitles": "`dicom-adapter aet add` (configuration lives in the ledger)",
    "sources": "`dicom-adapter source add` (configuration lives in the ledger)",
    "destinations": "`dicom-adapter destination add` (configuration lives in the ledger)",
    "resultsServiceEndpoint": "`services > resultsService > endpoint`",
    "bellInstances": "`wakeUpInstances`",
    "bellMilliseconds": "`wakeUpMilliseconds`",
    "tickSeconds": "`dueWorkPollSeconds`",
    "logDimseDatasets": "nothing: data sets are never logged",
}


#: How a variable begins by which Kubernetes links a pod to a service, e.g. one named like ours.
_LINKS = ("tcp://", "udp://")

_REMOVED_FOLDED = {key.lower(): replacement for key, replacement in REMOVED.items()}


#: Below these, keys are names that users choose, or a plug-in's.
_FREE = ("DicomAdapter > pipelines > ", "DicomAdapter > platforms > ")


def _take_removed(node: object, path: str = "DicomAdapter") -> list[str]:
    """Take out the removed keys of old releases; return an error for each, with its successor."""
    found: list[str] = []
    if isinstance(node, dict):
        for key in list(node):
            here = f"{path} > {key}"
            if key in REMOVED and not path.startswith(_FREE):
                found.append(f"{here}: removed; use {REMOVED[key]}")
                del node[key]
            else:
                found += _take_removed(node[key], here)
    return found


def _read_file(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the settings in a file, and an error for each key that is not a setting."""
    if path.suffix.lower() in {".yaml", ".yml"}:
        raise ConfigurationError(
            [f"{path}: YAML is no longer read; write the same keys as JSON, appsettings.json"]
        )
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError([f"{path}: no such file"]) from None
    except (OSError, ValueError) as error:
        raise ConfigurationError([f"{path}: cannot be read as JSON: {error}"]) from None
    if not isinstance(document, dict) or not isinstance(document.get("DicomAdapter"), dict):
        raise ConfigurationError([f'{path}: must be a JSON object with one key, "DicomAdapter"'])
    others = [key for key in document if key not in {"DicomAdapter", "Logging", "AllowedHosts"}]
    problems = [f"{key}: unknown key next to DicomAdapter" for key in others]
    section: dict[str, Any] = document["DicomAdapter"]
    return section, problems + _take_removed(section)


def _left_behind(default_file: Path) -> list[str]:
    """Return an error for each settings file of an old release, if there is no new one."""
    old = [default_file.with_name(name) for name in ("app.yaml", "app.yml")]
    return [
        f"{path}: YAML is no longer read; write the same keys as JSON, {default_file}"
        for path in old
        if path.exists()
    ]


def _wrong_variables() -> list[str]:
    """Return an error for each variable of an unknown section, or with too few underscores.

    Pydantic finds unknown keys of a section.
    """
    prefix = Settings.model_config["env_prefix"]
    settings = {_squeezed(name): name for name in _variables()}
    adapters = {_squeezed(name): name for name in (DATA_VARIABLE, CONFIG_VARIABLE)}
    found = []
    for name, value in sorted(os.environ.items()):
        is_prefixed = name.upper().startswith(prefix)
        meant = settings if is_prefixed else settings | adapters
        likely = meant.get(_squeezed(name))
        if is_prefixed:
            section = name[len(prefix) :].partition("__")[0].lower()
            if section in Settings.model_fields and (
                not likely or _levels(name) == _levels(likely)
            ):
                continue
            problem = f"{name}: there is no such setting to override"
        elif likely in {None, name} or value.startswith(_LINKS):
            continue
        else:
            problem = f"{name}: nothing reads this"
        found.append(f"{problem}; did you mean {likely}?" if likely else problem)
    return found


def _squeezed(variable: str) -> str:
    return variable.upper().replace("_", "")


def _levels(variable: str) -> list[str]:
    """Return a variable's levels as pydantic compares them: `read_only` is `readOnly`."""
    return [_squeezed(level) for level in variable.split("__")]


def _variables(model: type[BaseModel] = Settings, path: str = "DICOMADAPTER") -> Iterator[str]:
    """Yield the environment variable of each setting."""
    for name, field in model.model_fields.items():
        variable = f"{path}__{(field.alias or name).upper()}"
        yield variable
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _variables(field.annotation, variable)


def load(data: Path | None = None, config: Path | None = None) -> Settings:
    """Return the settings of the selected adapter.

    Parameters
    ----------
    data : Path, optional
        The data folder; its ``appsettings.json`` is read if it exists.
    config : Path, optional
        The settings file.

    Raises
    ------
    ConfigurationError
        Lists every problem with the path of its key.
    """
    if data is None and config is None:
        data_text, config_text = os.environ.get(DATA_VARIABLE), os.environ.get(CONFIG_VARIABLE)
        data = Path(data_text) if data_text else None
        config = Path(config_text) if config_text else None
    values: dict[str, Any] = {}
    problems: list[str] = []
    default_file = (data or Path("data")) / "appsettings.json"
    if config is None and default_file.exists():
        config = default_file
    elif config is None and data is None and Path("appsettings.json").exists():
        config = Path("appsettings.json")
    if config is not None:
        values, problems = _read_file(config)
    else:
        problems = _left_behind(default_file)
    if data is not None:
        values["data"] = data
    problems += _wrong_variables()
    try:
        settings = Settings(**values)
        problems += platform_problems(settings)
    except ValidationError as error:
        problems += _worded(error)
    if problems:
        raise ConfigurationError(problems)
    settings = settings.model_copy(update={"data": settings.data.absolute()})
    settings._file = None if config is None else config.absolute()  # noqa: SLF001 - its own module
    return settings


def platform_problems(settings: Settings) -> list[str]:
    """Return what is wrong with the platforms that pipelines name, as each kind of them says."""
    found = []
    used = {
        pipeline.platform: f"pipelines > {key} > platform"
        for key, pipeline in settings.pipelines.items()
        if pipeline.platform != EMBEDDED
    }
    named = {kind: f"platforms > {kind}" for kind in settings.platforms} | used
    for kind, path in named.items():
        try:
            platform = _platform(kind)
        except ConfigurationError as error:
            found.append(f"DicomAdapter > {path}: {error}")
            continue
        section = settings.platforms.get(kind, {})
        found += _section_problems(platform.Settings, section, "platforms", kind)
        for key, pipeline in settings.pipelines.items():
            if pipeline.platform == kind:
                model, section = platform.PipelineSettings, pipeline.platform_settings
                found += _section_problems(model, section, "pipelines", key, "platformSettings")
    return found


def _platform(kind: str) -> Any:
    plugin = plugins.find(plugins.PLATFORMS, kind)
    if plugin is None:
        known = ", ".join(plugins.names(plugins.PLATFORMS))
        raise ConfigurationError(
            [f"no installed package brings the platform {kind!r}; there is {known}"]
        )
    try:
        return plugin.load()
    except Exception as error:  # noqa: BLE001 - a plug-in's module may raise anything
        raise ConfigurationError(
            [f"the platform {kind!r} cannot be loaded ({type(error).__name__}: {error})"]
        ) from None


def _section_problems(model: type[BaseModel], section: dict[str, Any], *path: str) -> list[str]:
    try:
        model.model_validate(section)
    except ValidationError as error:
        return _worded(error, *path)
    return []


def _worded(error: ValidationError, *path: str) -> list[str]:
    within = ["DicomAdapter", *path]
    return validation_problems(error.errors(), within=within, separator=" > ", unknown=_unknown_key)


def _unknown_key(key: str) -> str:
    # Variables are case-insensitive: pydantic reports the key in lower case.
    renamed = _REMOVED_FOLDED.get(key.lower())
    return f"removed; use {renamed}" if renamed else "unknown key"
