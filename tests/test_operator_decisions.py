# SPDX-License-Identifier: Apache-2.0
"""What the operator decides, without a server: who is in force, what is told, when to come back."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.ledger import owners
from adapter.models import AETitle, Versioned
from adapter.operator.plan import APPLIED, CONFLICT, INVALID, Readiness, Reading, make_plan, read
from adapter.operator.resources import KINDS, Resource
from adapter.operator.status import status_of
from adapter.operator.watch import Backoff

AE_TITLE = KINDS[0]
NOW = datetime(2026, 11, 24, 3, 17, tzinfo=UTC)


def resource(name: str, age: int = 0, status: Any = None, **spec: Any) -> Resource:
    metadata = {
        "name": name,
        "namespace": "imaging",
        "uid": name,
        "creationTimestamp": f"2026-01-01T00:00:{age:02d}Z",
        "generation": 3,
    }
    return Resource.parse(AE_TITLE, {"metadata": metadata, "spec": spec, "status": status})


def ae_title(name: str, title: str) -> AETitle:
    return AETitle(name=name, ae_title=title, processor_settings={"pipeline-a": "b"})


# -- who is in force -----------------------------------------------------------------------------

NAMES = st.sampled_from(["n1", "n2", "n3"])
TITLES = st.sampled_from(["T1", "T2", "T3"])
READINGS = st.lists(
    st.builds(
        lambda name, age, entity, title: Reading(
            resource(name, age), entity and ae_title(entity, title), ()
        ),
        st.sampled_from(["a", "b", "c", "d"]),
        st.integers(0, 3),
        st.one_of(NAMES, NAMES, NAMES, st.none()),
        TITLES,
    ),
    unique_by=lambda reading: reading.resource.name,
)
OWNERS = st.one_of(
    st.just(owners.PEOPLE),
    st.just(owners.of_resource("elsewhere", "ClaraAeTitle", "a")),
    st.sampled_from(["a", "b", "c", "gone"]).map(
        lambda name: owners.of_resource("imaging", "ClaraAeTitle", name)
    ),
)
CURRENT = st.lists(
    st.builds(
        lambda name, title, owner: Versioned(1, ae_title(name, title), owner),
        NAMES,
        TITLES,
        OWNERS,
    ),
    unique_by=(lambda found: found.entity.name, lambda found: found.entity.ae_title),
)


def carried_out(readings: list[Reading], current: list[Versioned[Any]]) -> list[Versioned[Any]]:
    plan = make_plan(readings, current, "imaging")
    rows = {found.entity.key: found for found in current}
    for key in plan.removals:
        del rows[key]
    for entity, owner in plan.puts:
        rows[entity.key] = Versioned(2, entity, owner)
    return list(rows.values())


@given(READINGS, CURRENT)
def test_whatever_there_is_the_outcome_is_in_order(
    readings: list[Reading], current: list[Versioned[Any]]
) -> None:
    """Nobody else's entity is touched, no claim is held twice, and once is as good as twice."""
    mine = owners.of_namespace("imaging")
    after = carried_out(readings, current)

    assert [found for found in after if not found.owner.startswith(mine)] == [
        found for found in current if not found.owner.startswith(mine)
    ]
    assert len({found.entity.ae_title for found in after}) == len(after)
    held = [found.owner for found in after if found.owner.startswith(mine)]
    assert len(set(held)) == len(held)
    assert set(held) <= {reading.resource.owner for reading in readings}

    again = make_plan(readings, after, "imaging")
    assert (again.puts, again.removals) == ([], [])
    reverse = carried_out(list(reversed(readings)), current)
    by_key = {found.entity.key: (found.entity, found.owner) for found in after}
    assert {found.entity.key: (found.entity, found.owner) for found in reverse} == by_key


@given(READINGS, CURRENT)
def test_every_resource_is_told_the_truth(
    readings: list[Reading], current: list[Versioned[Any]]
) -> None:
    """A resource is refused exactly if what it says is not what is in force for it then."""
    plan = make_plan(readings, current, "imaging")
    after = {found.owner: found.entity for found in carried_out(readings, current)}

    for reading in readings:
        in_force = reading.entity is not None and (
            after.get(reading.resource.owner) == reading.entity
        )
        refusal = plan.refusals.get(reading.resource.owner)
        if reading.entity is None:
            assert refusal is not None
            assert refusal[0] == INVALID
        elif refusal is not None:
            assert refusal[0] == CONFLICT
            assert " is taken by " in refusal[1]
        else:
            assert in_force


@given(READINGS)
def test_the_oldest_resource_always_gets_what_it_asks_for(readings: list[Reading]) -> None:
    """Among resources alone, age decides."""
    valid = [reading for reading in readings if reading.entity is not None]
    if valid:
        oldest = min(valid, key=lambda reading: reading.resource.age_order)
        assert oldest.resource.owner not in make_plan(readings, [], "imaging").refusals


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        (resource("x" * 64, aeTitle="X"), "metadata.name: at most 63 characters"),
        (dataclasses.replace(resource("x"), spec="text"), "spec: is needed"),
        (resource("x", aeTitle="X", port=1), "port: Extra inputs are not permitted"),
        (resource("x", aeTitle="X"), "processorSettings: at least one pipeline-<name> is needed"),
    ],
)
def test_what_a_schema_let_through_is_read_with_care(broken: Resource, problem: str) -> None:
    """Also without the chart's definitions, nothing but an entity gets into the ledger."""
    reading = read(broken, ())

    assert reading.entity is None
    assert problem in reading.problems


@pytest.mark.parametrize("item", [None, [], {}, {"metadata": {}}, {"metadata": {"name": "x"}}])
def test_what_is_no_resource_is_refused(item: Any) -> None:
    """An item without what every resource has is none."""
    with pytest.raises(ValueError, match="not a custom resource"):
        Resource.parse(AE_TITLE, item)


# -- what is told --------------------------------------------------------------------------------


def test_a_status_that_says_it_already_is_left_alone() -> None:
    """The same readiness twice is one patch."""
    readiness = Readiness(APPLIED, "in force as version 7", 7)
    status = status_of(resource("x"), readiness, NOW)
    assert status == {
        "observedGeneration": 3,
        "version": 7,
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Applied",
                "message": "in force as version 7",
                "observedGeneration": 3,
                "lastTransitionTime": "2026-11-24T03:17:00Z",
            }
        ],
    }

    assert status_of(resource("x", status=status), readiness, NOW) is None


def test_a_time_of_transition_is_kept_until_there_is_one() -> None:
    """Another message is no transition; another status is one."""
    first = status_of(resource("x"), Readiness(INVALID, "one"), NOW)
    later = NOW.replace(hour=5)

    again = status_of(resource("x", status=first), Readiness(CONFLICT, "two"), later)
    ready = status_of(resource("x", status=first), Readiness(APPLIED, "three", 1), later)

    assert again is not None
    assert again["conditions"][0]["lastTransitionTime"] == "2026-11-24T03:17:00Z"
    assert ready is not None
    assert ready["conditions"][0]["lastTransitionTime"] == "2026-11-24T05:17:00Z"


def test_other_peoples_conditions_stay() -> None:
    """A merge patch replaces the list: what others wrote into it goes along."""
    other = {"type": "Reviewed", "status": "True"}
    status = {"conditions": [other, "nonsense"], "observedGeneration": 3}

    written = status_of(resource("x", status=status), Readiness(APPLIED, "", 1), NOW)

    assert written is not None
    assert [item["type"] for item in written["conditions"]] == ["Reviewed", "Ready"]


@pytest.mark.parametrize("status", ["text", [], {"conditions": None}, {"conditions": [1]}])
def test_a_status_that_makes_no_sense_is_written_anew(status: Any) -> None:
    """Whatever stands there, the status is right afterwards."""
    assert status_of(resource("x", status=status), Readiness(APPLIED, "", 1), NOW) is not None


# -- when to come back ---------------------------------------------------------------------------


def test_delays_grow_to_the_longest_and_begin_anew_when_it_went_well() -> None:
    """Doubled from failure to failure, jittered downwards by half at most, and bounded."""
    backoff = Backoff(0.5, 30.0)
    delays = [backoff.delay(0.0) for _ in range(10)]

    for number, delay in enumerate(delays):
        whole = min(0.5 * 2**number, 30.0)
        assert whole / 2 <= delay <= whole
    assert len(set(delays)) == 10
    assert backoff.delay(31.0) <= 0.5


@pytest.mark.parametrize(
    ("asked", "least"), [(3.0, 3.0), (1e9, 30.0), (float("nan"), 0.0), (-1, 0)]
)
def test_what_the_server_asks_for_is_kept_to_within_bounds(asked: float, least: float) -> None:
    """A server may ask for a longer delay than ours, not for one without end."""
    delay = Backoff(0.5, 30.0).delay(0.0, asked)

    assert max(least, 0.25) <= delay <= 30.0
