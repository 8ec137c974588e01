from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from ray.tune.result import AUTO_RESULT_KEYS, DONE, EXPERIMENT_TAG, TRIAL_ID

from raysweep.config.model import TUNE_NAMES
from raysweep.tune.reports import HAS_CHECKPOINT, numbers_of, reason_unusable, without_tune_names


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"score": 1}, None),
        ({"score": np.float32(0.5)}, None),
        ({}, "reported no score (it reported nothing)"),
        ({"loss": 1, "acc": 2, "training_iteration": 1}, "reported no score (it reported acc, loss)"),
        ({"score": "0.9"}, "reported score = '0.9', which is not a number"),
        ({"score": None}, "reported score = 'None', which is not a number"),
        ({"score": True}, "reported score = 'True', which is not a number"),
        ({"score": math.nan}, "reported score = nan, which is not finite"),
        ({"score": -math.inf}, "reported score = -inf, which is not finite"),
    ],
)
def test_a_report_is_usable_if_its_metric_is_a_finite_number(result: dict[str, Any], reason: str | None) -> None:
    assert reason_unusable(result, "score") == reason


def test_the_record_takes_finite_numbers_and_nothing_of_tunes_own() -> None:
    reported = {
        "score": np.float64(0.5),
        "n": np.int64(3),
        "bad": math.nan,
        "text": "x",
        "flag": True,
        "training_iteration": 1,
        "time_total_s": 2.0,
        "pid": 3,
        7: 0.25,
    }
    assert numbers_of(reported) == {"score": 0.5, "n": 3, "7": 0.25}


def test_tune_sets_no_other_names_in_a_report() -> None:
    assert {*AUTO_RESULT_KEYS, DONE, TRIAL_ID, EXPERIMENT_TAG, HAS_CHECKPOINT} == TUNE_NAMES


def test_what_tune_sets_itself_is_left_out_of_a_report() -> None:
    report = {"training_iteration": 7, "time_total_s": 1, "done": True, "score": 0.5, "val": {"date": 1}}
    with pytest.warns(UserWarning, match="reported done, time_total_s, training_iteration, which Ray Tune sets itself"):
        assert without_tune_names(report) == {"score": 0.5, "val": {"date": 1}}
