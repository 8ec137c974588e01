from __future__ import annotations

from typing import Any

import pytest

from raysweep.common.typed_json import known_fields_from_json, to_json
from raysweep.record.events import Provenance, ScheduleStep
from raysweep.record.results import BestMetric, BestResult, Confirmation, ConfirmedOther, Repeats

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


def confirmation(values: list[float | None], seeds: list[int] | None = None, **changes: Any) -> Confirmation:
    numbers = seeds or list(range(1, len(values) + 1))
    each = [{"seed": seed, "value": value, "error": None} for seed, value in zip(numbers, values, strict=True)]
    known = [value for value in values if value is not None]
    return known_fields_from_json(Confirmation, CONFIRMED | {"seeds": each, "n": len(known), "mean": 0.5} | changes)


def other_of(values: list[float | None], winner: list[float | None], num_others: int = 1, seeds: list[int] | None = None) -> ConfirmedOther:
    best = known_fields_from_json(BestResult, BEST)
    return confirmation(values, seeds).as_other(best, confirmation(winner), num_others)


def test_the_seeds_of_both_configurations_are_paired() -> None:
    other = other_of([0.4, None, 0.7, 0.9], [0.5, 0.6, None, 0.7])
    assert (other.difference.n, other.difference.mean) == (2, pytest.approx(0.05))
    assert other.difference.low is None
    assert (other.trial_id, other.validation, other.epochs, other.n) == ("00001", 0.5, 4, 3)


@pytest.mark.parametrize(
    ("values", "winner", "mode", "verdict", "words"),
    [
        (
            [0.5, 0.6],
            [0.4, 0.5],
            "max",
            None,
            "0.1 above the winner, over 2 shared seeds. Whether they differ cannot be concluded: 3 shared",
        ),
        ([0.5, 0.5, 0.5], [0.4, 0.4, 0.4], "max", None, "cannot be concluded: the difference is the same with each seed"),
        (
            [0.5, 0.61, 0.69],
            [0.4, 0.5, 0.6],
            "max",
            "better",
            "(95 % interval 0.07516 to 0.1248). The configuration is better than the winner by more than",
        ),
        ([0.5, 0.61, 0.69], [0.4, 0.5, 0.6], "min", "worse", "The configuration is worse than the winner by more than chance"),
        ([0.3, 0.41, 0.49], [0.4, 0.5, 0.6], "max", "worse", "0.1 below the winner, over 3 shared seeds (95 % interval -0.1248 to"),
        ([0.3, 0.6, 0.5], [0.4, 0.5, 0.6], "max", None, "Chance may explain this."),
        ([None, None], [0.4, 0.5], "max", None, "share no seed with a value, so nothing can be said"),
        ([0.4, 0.5], [0.4, 0.5], "max", None, "is on average equal to the winner, over 2 shared seeds"),
    ],
)
def test_a_difference_is_called_one_only_beyond_chance(
    values: list[float | None], winner: list[float | None], mode: Any, verdict: str | None, words: str
) -> None:
    other = other_of(values, winner)
    assert other.verdict(mode) == verdict
    assert words in other.sentence(mode)


def test_the_intervals_of_several_configurations_hold_together() -> None:
    """With one comparison, this configuration would differ from the winner."""
    values, winner = [0.43, 0.51, 0.64], [0.4, 0.5, 0.6]
    assert [other_of(values, winner, num).verdict("max") for num in (1, 3)] == [None, None]
    values = [0.425, 0.52, 0.635]
    assert [other_of(values, winner, num).verdict("max") for num in (1, 5)] == ["better", None]


LISTED = {"metrics": {"f1": {"mean": 0.4, "standard_deviation": None}}}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"published_model": {"accuracy": 0.4}},
        {"published_model_error": "it died"},
        {**LISTED, "predictions": {"confusion": [[3, 1], [0, 2]]}},
        {**LISTED, "predictions": {"true": [1.5, 2.0], "predicted": [1.0, 2.5]}},
        {"others": [to_json(other_of([0.4, 0.5], [0.5, 0.6]))]},
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
