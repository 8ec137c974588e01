from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raysweep.common.machine import NodeSize
from raysweep.common.typed_json import from_json
from raysweep.config.model import Named
from raysweep.record.reopening import Reopening
from raysweep.record.trials import Trial
from raysweep.stages.plan import Plan, Range, early_ends, lines_of, makespan_s, share_of_epochs, trainings_of
from raysweep.stages.speed import Speed
from typed import sweep_config

SPEED = Speed([2.0] * 10, 0.2, 1.0, 1, 4, 20.0, "steps", "no: fuse is off")


@pytest.mark.parametrize(
    ("scheduler", "max_epochs", "share"),
    [
        ({"name": "none"}, 9, 1),
        # 1 epoch of all, 2 more of a third, 6 more of a ninth: 1 + 2/3 + 6/9 of 9.
        ({"name": "asha", "grace_period": 1, "reduction_factor": 3}, 9, (1 + 2 / 3 + 6 / 9) / 9),
        ({"name": "asha", "grace_period": 4, "reduction_factor": 2}, 6, (4 + 2 / 2) / 6),
        ({"name": "hyperband", "reduction_factor": 3}, 9, (1 + 2 / 3 + 6 / 9) / 9),
        ({"name": "median", "grace_period": 2, "min_samples_required": 3}, 10, 0.6),
        ({"name": "asha", "grace_period": 1, "reduction_factor": 4}, 1, 1),
    ],
)
def test_the_part_of_all_epochs_that_a_scheduler_leaves(scheduler: dict[str, Any], max_epochs: int, share: float) -> None:
    assert share_of_epochs(from_json(Named, scheduler), max_epochs) == pytest.approx(share)


@pytest.mark.parametrize(("at_a_time", "seconds"), [(1, 14), (2, 9), (3, 6), (9, 5)])
def test_trials_take_turns_in_their_order(at_a_time: int, seconds: float) -> None:
    assert makespan_s([5, 2, 3, 4], at_a_time) == seconds


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, ""),
        ({"stop": {"score": {"at_least": 1}}}, ""),
        (
            {"stop": {"no_better_for": {"epochs": 5, "min_delta": 0}}, "end_when": {"no_better_for": {"configurations": 30}}},
            "a trial after 5 epochs without a better value (stop) and the sweep after 30 configurations without a better value (end_when)",
        ),
    ],
)
def test_the_plan_names_what_may_end_early(given: dict[str, Any], text: str) -> None:
    assert early_ends(sweep_config(trainable="user.py:train", **given)) == text
    ranges = (Range(1, 2, 3), None, 7, Range(2, 3, 4), None)
    plan = Plan("s", 10, 10, Reopening((), 1, ()), 4, 3, False, (NodeSize("a", 6, 2),), SPEED, *ranges, may_end_early=text)
    assert dict(lines_of(plan)).get("may end", "").startswith(text)
    assert ("may end" in dict(lines_of(plan))) is bool(text)


@pytest.mark.parametrize(("confirm", "text"), [({}, ""), ({"seeds": 4, "top": 3}, ", 12 trainings: 4 of each of 3 configurations")])
def test_the_plan_counts_the_trainings_of_a_confirmation(confirm: dict[str, int], text: str) -> None:
    assert trainings_of(sweep_config(trainable="user.py:train", confirm=confirm).confirm) == text
    ranges = (Range(1, 2, 3), None, 7, Range(2, 3, 4), None)
    plan = Plan("s", 9, 0, Reopening((), 1, ()), 1, 0, False, (NodeSize("a", 6, 2),), SPEED, *ranges, text)
    assert dict(lines_of(plan))["confirm"] == f"at most 4s{text}"


@pytest.mark.parametrize(("runtime_s", "fits"), [(None, "yes"), (1000, "yes"), (70, "perhaps"), (30, "no")])
def test_whether_it_fits(runtime_s: float | None, fits: str) -> None:
    nodes = (NodeSize("a", 6, 2), NodeSize("b", 6, 2))
    plan = Plan("s", 10, 10, Reopening((), 1, ()), 4, 3, False, nodes, SPEED, Range(36, 60, 90), runtime_s, 7, Range(20, 30, 40), None)
    assert plan.fits == fits
    assert plan.hours("gpus") == Range(0.04, pytest.approx(4 / 60), 0.1)
    assert plan.hours("cpus").high == pytest.approx(0.3)
    assert ("fits" in dict(lines_of(plan))) == (runtime_s is not None)


@pytest.mark.parametrize(
    ("jobs", "text"),
    [
        (1, "4, with 8 CPUs and 4 GPUs"),
        (2, "up to 4, with 8 CPUs and 4 GPUs: 2 jobs of 2 nodes. The walltime holds where all jobs run from the start"),
        (4, "up to 4, with 8 CPUs and 4 GPUs: 4 jobs of 1 node. The walltime holds where all jobs run from the start"),
    ],
)
def test_the_nodes_of_several_jobs_are_an_upper_bound(jobs: int, text: str) -> None:
    ranges = (Range(1, 2, 3), None, 7, Range(2, 3, 4), None)
    plan = Plan("s", 10, 10, Reopening((), 1, ()), 4, 3, False, (NodeSize("a", 2, 1),) * 4, SPEED, *ranges, jobs=jobs)
    assert dict(lines_of(plan))["nodes"] == text


def test_what_going_on_costs_is_a_line_of_the_plan() -> None:
    trial = Trial("00000", 0, 0, 0, {})
    plan = Plan(
        "s",
        2,
        1,
        Reopening((trial,), 4, (3,)),
        1,
        1,
        False,
        (NodeSize("a", 2, 0),),
        SPEED,
        Range(1, 2, 3),
        None,
        None,
        Range(1, 2, 3),
        None,
    )
    assert dict(lines_of(plan))["going on"] == "1 finished trial goes on to epoch 4, with at most 1 epoch of training"
    assert (plan.as_dict()["trials_going_on"], plan.as_dict()["epochs_of_going_on"]) == (1, 1)
    assert "going on" not in dict(lines_of(replace(plan, reopening=Reopening((), 4, ()))))
