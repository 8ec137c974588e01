"""The pieces from which figures are put together."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.report.charts.parts import chart, layer, mark, metric_scale, nominal, quantitative, time_unit
from reporting import made_up


def test_a_layer_has_its_own_data_only_where_they_are_given() -> None:
    point = mark("point", size=4)
    assert layer(point, x=nominal("a")) == {"mark": {"type": "point", "size": 4}, "encoding": {"x": {"field": "a", "type": "nominal"}}}
    own = layer(point, data=[{"a": 1}], transform=[{"filter": "datum.a"}], shape=quantitative("a", title="A"))
    assert own["data"] == {"values": [{"a": 1}]}
    assert own["transform"] == [{"filter": "datum.a"}]
    assert own["encoding"] == {"shape": {"field": "a", "type": "quantitative", "title": "A"}}


def test_the_page_decides_the_width_of_a_figure() -> None:
    figure = chart("text", 100, [], data={"name": "trials"})
    assert (figure["width"], figure["height"], figure["data"]) == ("container", 100, {"name": "trials"})


@pytest.mark.parametrize(("values", "kind"), [([0.5, 400.0], None), ([0.5, 600.0], "log"), ([-1.0, 600.0], None), ([0.0, 600.0], None)])
def test_the_scale_is_logarithmic_where_one_value_would_squash_all_others(tmp_path: Path, values: list[float], kind: str | None) -> None:
    inputs = made_up(tmp_path, num_trials=2)
    for trial, value in zip(inputs.trials, values, strict=True):
        trial.results[0].metrics["accuracy"] = value
    assert metric_scale(inputs).get("type") == kind


@pytest.mark.parametrize(("total_s", "unit"), [(0, "s"), (179, "s"), (180, "min"), (10799, "min"), (10800, "h")])
def test_time_axes_have_a_unit_that_suits_their_length(total_s: float, unit: str) -> None:
    assert time_unit(total_s)[1] == unit
