"""The header, the sessions and the YAML files as typed values."""

from __future__ import annotations

from typing import Any

import pytest

from raysweep.report.documents import Confirmation, Session, SweepHeader
from recorded import header

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


def test_keys_that_the_report_does_not_read_are_left_out() -> None:
    read = SweepHeader.read(header(later="a key of a later version"))
    assert (read.name, read.search_algorithm_name, read.scheduler_name) == ("lenet", "random", "none")
    assert read.trainable is None


def test_a_missing_key_without_a_default_is_named() -> None:
    values = header()
    del values["metric"]
    with pytest.raises(TypeError, match="metric"):
        SweepHeader.read(values)


def test_a_confirmation_knows_which_seeds_gave_a_value() -> None:
    read = Confirmation.read(CONFIRMED)
    assert read.values == [0.5]
    assert [seed.error for seed in read.seeds] == [None, "it died"]
    assert read.is_on_test
    assert not Confirmation.read(CONFIRMED | {"evaluated_on": "validation"}).is_on_test


def test_a_session_that_was_cut_off_has_no_outcome() -> None:
    values = {"at": "2026-03-01T09:00:00.000Z", "last_at": "2026-03-01T10:00:00.000Z", "host": "login-1"}
    read = Session.read(values | {"nodes": [{"name": "n1", "cpus": 4, "gpus": 1, "gpu_type": "h200"}]})
    assert read.outcome is None
    assert (read.nodes[0].name, read.nodes[0].cpus, read.nodes[0].gpus) == ("n1", 4, 1)
    assert Session.read(values | {"nodes": [], "outcome": "complete"}).outcome == "complete"
