from __future__ import annotations

import json

import pytest

from raysweep.tune.slots.messages import FusionPlan, NotFused


def test_a_plan_keeps_the_format_of_the_record_and_is_read_from_it() -> None:
    plan = FusionPlan(processes=2, slots=10, speed_up=2.57, way="compiled in 27 s")
    event = plan.as_event()
    assert event == {"why_not": None, "processes": 2, "seats": 10, "speed_up": 2.57, "way": "compiled in 27 s"}
    assert FusionPlan.from_event(json.loads(json.dumps(event))) == plan


@pytest.mark.parametrize("event", [None, NotFused("dropout").as_event(), {"why_not": "dropout"}])
def test_without_fusion_there_is_no_plan(event: dict[str, str] | None) -> None:
    assert FusionPlan.from_event(event) is None
