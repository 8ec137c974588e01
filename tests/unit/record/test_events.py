from __future__ import annotations

import json
from dataclasses import replace

import pytest

from raysweep.common.machine import NodeSize
from raysweep.common.typed_json import from_json, to_json
from raysweep.record.events import FusionPlan, NotFused, Provenance, Session, SessionHeader, fusion_from_event
from recorded import header

SESSION = {"event": "session", "sweep": {"name": "s"}, "host": "login-1", "pid": 1, "slurm_job": "7", "at": "2026-03-01T09:00:00.000Z"}


def test_a_plan_keeps_the_format_of_the_record_and_is_read_from_it() -> None:
    plan = FusionPlan(processes=2, slots=10, speed_up=2.57, way="compiled in 27 s", step_mode="compiled")
    event = plan.as_event()
    assert event == {"why_not": None, "processes": 2, "seats": 10, "speed_up": 2.57, "way": "compiled in 27 s", "step_mode": "compiled"}
    assert fusion_from_event(json.loads(json.dumps(event))) == plan
    del event["step_mode"]
    assert fusion_from_event(event) == replace(plan, step_mode=None), "a record of an earlier version"


@pytest.mark.parametrize("event", [NotFused("dropout").as_event(), {"why_not": "dropout"}])
def test_without_fusion_there_is_a_reason(event: dict[str, str]) -> None:
    assert fusion_from_event(event) == NotFused("dropout")


def test_a_header_keeps_the_keys_of_the_record_in_their_order() -> None:
    provenance = Provenance("0.1.0", "i", "e", "d")
    written = to_json(SessionHeader(name="s", identity="i", provenance=provenance))
    keys = (
        "name identity depends_on num_trials max_epochs repeats has_folds metric mode seed search_space search_algorithm scheduler dataset"
    )
    last_keys = "model trainable optimizer loss training trial_resources constraint version provenance"
    assert list(written) == [*keys.split(), *last_keys.split()]
    assert written["provenance"] == {"workflow_version": "0.1.0", "identity": "i", "environment_sha256": "e", "data_sha256": "d"}
    assert written["scheduler"] == {"name": "none"}
    assert from_json(SessionHeader, json.loads(json.dumps(written))) == SessionHeader(name="s", identity="i", provenance=provenance)


def test_earlier_environments_are_written_where_there_are_some() -> None:
    provenance = Provenance("0.1.0", "i", "c", None, ("a", "b"))
    assert to_json(provenance)["earlier_environments"] == ["a", "b"]
    assert from_json(Provenance, to_json(provenance)) == provenance


def test_keys_of_a_header_that_this_version_does_not_know_are_left_out() -> None:
    read = from_json(SessionHeader, header(later="a key of a later version"))
    assert (read.name, read.search_algorithm.name, read.scheduler.name) == ("lenet", "random", "none")
    assert read.trainable is None


def test_keys_that_an_old_header_lacks_have_defaults() -> None:
    read = from_json(SessionHeader, {})
    assert (read.repeats, read.constraint, read.provenance) == (1, {}, Provenance())


def test_a_session_that_was_cut_off_has_no_outcome() -> None:
    read = Session.from_event(SESSION | {"nodes": [{"name": "n1", "cpus": 4, "gpus": 1, "gpu_type": "h200"}]})
    assert (read.outcome, read.slurm_job, read.header.name) == (None, "7", "s")
    assert read.last_at == read.at
    assert read.nodes == (NodeSize("n1", 4, 1),)
