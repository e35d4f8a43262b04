# SPDX-License-Identifier: Apache-2.0
"""The schemas of the custom resources say what the models say."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from adapter.errors import ConfigurationError
from adapter.ledger import configuration
from adapter.models import AETitle, EntityKind, entity_model
from adapter.processors import registry
from adapter.processors.ae_title import AETitleSettings
from tests.support_custom_resources import Definition, definitions

KINDS = {
    "ClaraAeTitle": EntityKind.AE_TITLE,
    "Source": EntityKind.SOURCE,
    "Destination": EntityKind.DESTINATION,
}
#: The least that each kind has to say.
LEAST: dict[str, dict[str, Any]] = {
    "ClaraAeTitle": {"aeTitle": "CT-AI", "processorSettings": {"pipeline-ct": "lung"}},
    "Source": {"aeTitle": "CT1", "hostIp": ["10.0.0.7"]},
    "Destination": {"name": "archive", "aeTitle": "ARCHIVE", "hostIp": "10.0.0.9", "port": 104},
}


def resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "dicom.adapter.io/v1",
        "kind": kind,
        "metadata": {"name": "one", "namespace": "imaging"},
        "spec": spec,
    }


def schema_refuses(kind: str, spec: dict[str, Any]) -> list[str]:
    definition = definitions()[kind]
    return definition.problems(definition.with_defaults(resource(kind, spec)))


def model_refuses(kind: str, spec: dict[str, Any]) -> list[str]:
    try:
        entity = configuration.parse(KINDS[kind], spec)
        if isinstance(entity, AETitle):
            registry.validate(entity)
    except ConfigurationError as error:
        return error.problems
    return []


def spec_schema(definition: Definition) -> dict[str, Any]:
    spec: dict[str, Any] = definition.schema["properties"]["spec"]
    return spec


@pytest.mark.parametrize("kind", KINDS)
def test_a_spec_has_the_keys_of_the_model(kind: str) -> None:
    """Keys, which of them are needed, and defaults are the same in schema and model."""
    schema, fields = spec_schema(definitions()[kind]), entity_model(KINDS[kind], {}).model_fields
    entity = configuration.parse(KINDS[kind], LEAST[kind]).model_dump(mode="json", by_alias=True)

    assert set(schema["properties"]) == {field.alias for field in fields.values()}
    assert set(schema["required"]) == {
        field.alias for field in fields.values() if field.is_required()
    }
    defaults = {
        key: below["default"] for key, below in schema["properties"].items() if "default" in below
    }
    defaults.pop("processorSettings", None)  # which LEAST has to give
    assert defaults == {key: entity[key] for key in defaults}


def test_the_rules_name_the_settings_of_the_default_processor() -> None:
    """A setting that the AE Title Job Processor gets is one that the schema lets through."""
    rules = spec_schema(definitions()["ClaraAeTitle"])["x-kubernetes-validations"]
    (known,) = [rule["rule"] for rule in rules if "key in [" in rule["rule"]]
    fields = AETitleSettings.model_fields

    assert set(re.findall(r"'(\w+)'", known)) == {
        field.alias for name, field in fields.items() if name != "pipelines"
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_definition_is_fit_for_use(kind: str) -> None:
    """Status is a subresource, columns point at fields that exist, names are bounded."""
    document = definitions()[kind].document
    (version,) = document["spec"]["versions"]

    assert document["metadata"]["name"] == f"{definitions()[kind].plural}.dicom.adapter.io"
    assert document["spec"]["scope"] == "Namespaced"
    assert document["spec"]["names"]["categories"] == ["dicom"]
    assert document["spec"]["names"]["shortNames"]
    assert version["subresources"] == {"status": {}}
    columns = {column["name"]: column["jsonPath"] for column in version["additionalPrinterColumns"]}
    assert {"AE Title", "Ready", "Age"} <= set(columns)
    for path in columns.values():
        section, key = path.removeprefix(".").split(".")[:2]
        if section != "metadata":
            assert (
                re.split(r"\W", key)[0]
                in definitions()[kind].schema["properties"][section]["properties"]
            )
    assert "{{" not in str(document), "a definition is no template"


@pytest.mark.parametrize("kind", KINDS)
def test_the_least_is_enough(kind: str) -> None:
    """The shortest valid resource passes both."""
    assert schema_refuses(kind, LEAST[kind]) == []
    assert model_refuses(kind, LEAST[kind]) == []


CHARACTERS = st.characters(codec="ascii")
#: Around every limit of a text: none, one, and the last allowed and first forbidden length.
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=20),
    st.sampled_from([0, 1, 16, 17, 64, 65, 253, 254]).map(lambda length: "x" * length),
    st.sampled_from(
        [" A", "A ", " ", "A B", "A\\B", "A/B", "A\tB", "É", "1.2.840", "01.2", "1..2"]
    ),
)
NUMBERS = st.one_of(
    st.sampled_from(["4.9", "5", "86400", "86400.1", "604800", "604801", "86400000", "86400001"]),
    st.sampled_from(["", "-1", "0", "five", "nan", "5s", "0020,000D", "00100020", "(0010,0020)"]),
    st.sampled_from(["PatientID", "lower", "Higher", "URGENT", "x" * 256, "x" * 257]),
)
SETTINGS = st.one_of(
    st.dictionaries(
        st.sampled_from(
            ["timeout", "maximumWait", "jobRetryDelay", "groupBy", "priority", "unknown"]
        ),
        NUMBERS,
        max_size=2,
    ),
    st.dictionaries(
        st.sampled_from(["pipeline-", "pipeline-" + "x" * 64, "pipeline-" + "x" * 65]),
        NUMBERS,
        max_size=1,
    ),
    st.sampled_from([{f"k{number}": "" for number in range(101)}, {"k" * 129: ""}]),
)
ADDRESSES = st.sampled_from(
    ["10.0.0.7", "10.1.0.0/16", "::1", "fe80::/10", "10.0.0.0/255.0.0.0", "host", "", "10.0.0.7,"]
)
ANYTHING = st.one_of(st.none(), st.booleans(), st.integers(-1, 9), st.just([]), st.just({}))


def values(key: str, base: Any) -> st.SearchStrategy[Any]:
    match key:
        case "processorSettings":
            likely: Any = st.one_of(SETTINGS, SETTINGS.map(lambda more: {**base, **more}))
        case "ignoredSopClasses":
            likely = st.one_of(st.lists(TEXTS, max_size=2), st.just(["1.2"] * 201))
        case "port":
            likely = st.sampled_from([0, 1, 65535, 65536])
        case "onPatientConflict":
            likely = st.sampled_from(["warn", "hold", "stop"])
        case "resend":
            likely = st.sampled_from(["ignore", "rerun", "again"])
        case "hostIp" if isinstance(base, list):
            likely = st.one_of(st.lists(ADDRESSES, max_size=2), st.just(["10.0.0.7"] * 257))
        case _:
            likely = TEXTS
    return st.one_of(likely, likely, likely, ANYTHING)


@st.composite
def specs(draw: Any, kind: str) -> dict[str, Any]:
    """A valid spec with one or two of its keys changed, mostly around their limits."""
    spec = dict(LEAST[kind])
    keys = sorted(str(field.alias) for field in entity_model(KINDS[kind], {}).model_fields.values())
    for key in draw(st.lists(st.sampled_from([*keys, "unknown"]), min_size=1, max_size=2)):
        if draw(st.integers(0, 9)) == 0:
            spec.pop(key, None)
        else:
            spec[key] = draw(values(key, LEAST[kind].get(key)))
    return spec


def agree(kind: str, spec: dict[str, Any]) -> None:
    refused, problems = schema_refuses(kind, spec), model_refuses(kind, spec)
    if not refused:
        # Left to the operator's status: what an address or a tag means, which processors are there.
        left = "hostIp: |processor: .* is none of|processorSettings.groupBy: "
        assert all(re.match(left, item) for item in problems), problems
    if not problems:
        entity = configuration.parse(KINDS[kind], spec)
        assert schema_refuses(kind, entity.model_dump(mode="json", by_alias=True)) == []


@given(specs("ClaraAeTitle"))
@example({"aeTitle": "CT-AI"})
@example({"aeTitle": "CT-AI", "processorSettings": {"timeout": "30"}})
def test_schema_and_model_agree_on_ae_titles(spec: dict[str, Any]) -> None:
    """What the schema takes the model takes; what the model takes is, written out, taken too."""
    agree("ClaraAeTitle", spec)


@given(specs("Source"))
def test_schema_and_model_agree_on_sources(spec: dict[str, Any]) -> None:
    """The same for sources, but for what an address means."""
    agree("Source", spec)


@given(specs("Destination"))
def test_schema_and_model_agree_on_destinations(spec: dict[str, Any]) -> None:
    """The same for destinations."""
    agree("Destination", spec)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"processorSettings": {}}, "at least one pipeline-<name> is needed"),
        ({"processorSettings": {"pipeline-a": "x", "timeout": "4"}}, "from 5 to 86400"),
        ({"processorSettings": {"pipeline-a": "x", "timeuot": "9"}}, "ae-title knows timeout"),
        ({"processorSettings": {"pipeline-a": "x", "priority": "urgent"}}, "one of lower"),
        ({"processorSettings": {"pipeline-a": "x", "groupBy": "patient"}}, "a DICOM tag such as"),
        ({"processorSettings": {"pipeline-a": ""}}, "a value of 1 to 256"),
        ({"aeTitle": " CT-AI"}, "no outer spaces"),
    ],
)
def test_a_rule_says_what_is_wrong(change: dict[str, Any], complaint: str) -> None:
    """The rules in CEL refuse at the door, in words that tell what to write."""
    refused = schema_refuses("ClaraAeTitle", {**LEAST["ClaraAeTitle"], **change})

    assert complaint in "; ".join(refused)


def test_another_processor_has_its_own_settings() -> None:
    """The rules of ae-title hold for ae-title only."""
    spec = {"aeTitle": "X", "processor": "mine", "processorSettings": {"timeout": "1"}}

    assert schema_refuses("ClaraAeTitle", spec) == []
