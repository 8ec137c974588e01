"""The YAML files as typed values."""

from __future__ import annotations

from typing import Any

from raysweep.report.documents import Confirmation

CONFIRMED: dict[str, Any] = {
    "evaluated_on": "test",
    "note": "trained on all training data, evaluated on the test set",
    "epochs": 4,
    "seeds": [{"seed": 1, "value": 0.5, "error": None}, {"seed": 2, "value": None, "error": "it died"}],
    "n": 1,
    "mean": 0.5,
    "standard_deviation": None,
    "published_model": None,
}


def test_a_confirmation_knows_which_seeds_gave_a_value() -> None:
    read = Confirmation.read(CONFIRMED)
    assert read.values == [0.5]
    assert [seed.error for seed in read.seeds] == [None, "it died"]
    assert read.is_on_test
    assert not Confirmation.read(CONFIRMED | {"evaluated_on": "validation"}).is_on_test
