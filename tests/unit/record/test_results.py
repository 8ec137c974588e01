from __future__ import annotations

from typing import Any

import pytest

from raysweep.common.typed_json import known_fields_from_json, to_json
from raysweep.record.events import Provenance, ScheduleStep
from raysweep.record.results import BestMetric, BestResult, Confirmation, Repeats

PROVENANCE = {"workflow_version": "0.1.0", "identity": "i", "environment_sha256": "e", "data_sha256": None}
BEST: dict[str, Any] = {
    "sweep": "s",
    "trial_id": "00001",
    "config": {"lr": 0.1},
    "metric": {"name": "accuracy", "mode": "max", "value": 0.5},
    "epochs": 4,
    "num_trials": 3,
    "num_errors": 1,
    "provenance": PROVENANCE,
    "model_epoch": None,
}
CONFIRMED: dict[str, Any] = {
    "sweep": "s",
    "metric": {"name": "accuracy", "mode": "max"},
    "config": {"lr": 0.1},
    "epochs": 4,
    "evaluated_on": "test",
    "note": "trained on all training data, evaluated on the test set",
    "seeds": [{"seed": 1, "value": 0.5, "error": None}, {"seed": 2, "value": None, "error": "it died"}],
    "n": 1,
    "mean": 0.5,
    "standard_deviation": None,
    "published_model": None,
}


def test_a_confirmation_knows_which_seeds_gave_a_value() -> None:
    read = known_fields_from_json(Confirmation, CONFIRMED)
    assert read.values == [0.5]
    assert [seed.error for seed in read.seeds] == [None, "it died"]
    assert read.is_on_test
    assert not known_fields_from_json(Confirmation, CONFIRMED | {"evaluated_on": "validation"}).is_on_test


LISTED = {"metrics": {"f1": {"mean": 0.4, "standard_deviation": None}}}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"published_model": {"accuracy": 0.4}},
        {"published_model_error": "it died"},
        {**LISTED, "predictions": {"confusion": [[3, 1], [0, 2]]}},
        {**LISTED, "predictions": {"true": [1.5, 2.0], "predicted": [1.0, 2.5]}},
    ],
)
def test_a_confirmation_is_written_as_it_was_read(changes: dict[str, Any]) -> None:
    document = CONFIRMED | changes
    assert list(to_json(known_fields_from_json(Confirmation, document)).items()) == list(document.items())


def test_the_winner_is_written_as_it_was_read_without_the_keys_that_do_not_concern_it() -> None:
    read = known_fields_from_json(BestResult, BEST)
    assert (read.metric, read.value, read.provenance) == (BestMetric("accuracy", "max", 0.5), 0.5, Provenance("0.1.0", "i", "e"))
    assert (read.schedule, read.repeats, read.constraint) == ((), None, {})
    assert list(to_json(read).items()) == list(BEST.items())


def test_the_schedule_the_repeats_and_the_constraint_of_a_winner_stand_before_its_epochs() -> None:
    optional = {
        "schedule": [{"from_epoch": 0, "config": {"lr": 1}}, {"from_epoch": 2, "config": {"lr": 0.1}}],
        "repeats": {"n": 2, "values": [0.4, 0.6], "standard_deviation": 0.1},
        "constraint": {"size": {"at_most": 2}},
    }
    keys = list(BEST)
    document = {key: BEST[key] for key in keys[:4]} | optional | {key: BEST[key] for key in keys[4:]}
    read = known_fields_from_json(BestResult, document)
    assert read.schedule == (ScheduleStep(0, {"lr": 1}), ScheduleStep(2, {"lr": 0.1}))
    assert read.repeats == Repeats(2, (0.4, 0.6), 0.1)
    assert list(to_json(read).items()) == list(document.items())


@pytest.mark.parametrize(("values", "repeats"), [([0.5], None), ([0.25, 0.75], Repeats(2, (0.25, 0.75), pytest.approx(0.5**0.5 / 2)))])
def test_a_single_value_is_no_repeat(values: list[float], repeats: Repeats | None) -> None:
    assert Repeats.of(values) == repeats


def test_a_missing_key_without_a_default_is_named() -> None:
    with pytest.raises(TypeError, match="metric"):
        known_fields_from_json(BestResult, {key: value for key, value in BEST.items() if key != "metric"})
