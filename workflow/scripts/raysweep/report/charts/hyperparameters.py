"""Builds the figures of the search space.

The figures show the metric against each key, all keys side by side, the importance of the keys, and the map of two keys.
"""

from __future__ import annotations

import json
import math

from raysweep.common.text import number
from raysweep.report.analysis import LEVELS, Importance, landscape
from raysweep.report.charts.data import drawn_trials, left_out_trials, metric_position
from raysweep.report.charts.parts import (
    COLOUR_BY_STATUS,
    COLOUR_BY_TIER,
    SHAPE_BY_STATUS,
    TIER_COLOURS,
    TRIAL,
    WINNER_COLOUR,
    WINNER_MARK,
    WITH_VALUE,
    Spec,
    chart,
    layer,
    mark,
    metric_axis,
    metric_tooltip,
    nominal,
    only_winner,
    ordinal,
    quantitative,
    title_text,
    trial_tooltip,
)
from raysweep.report.inputs import Inputs, SweepResult
from raysweep.report.keys import Key

FEW_LINES = 60  # maximum number of lines of the parallel coordinates that are not drawn with less colour
KEY_HEIGHT = 220  # height in pixels of the figure of one key


def hyperparameter(inputs: Inputs, keys: list[Key], i: int) -> Spec:
    """Return the figure of the metric against the key `keys[i]`. Failed trials are crosses at the bottom, and the winner is a diamond."""
    key, x = keys[i], _x_axis(i, keys[i])
    y = metric_axis(inputs, axis={"tickCount": 5})
    tooltip = trial_tooltip(inputs, keys)
    points = layer(
        mark("point", filled=True, size=46, opacity=0.75),
        transform=[WITH_VALUE],
        x=x,
        y=y,
        color=COLOUR_BY_STATUS,
        shape=SHAPE_BY_STATUS,
        tooltip=tooltip,
    )
    if not key.numeric:
        # The points of one category are spread sideways, so that all points can be seen. The pattern depends only on the trial ids, so every report
        # shows the same figure.
        points["transform"] = [*points["transform"], {"calculate": "((toNumber(datum.trial) * 7) % 11 - 5) / 7", "as": "jitter"}]
        points["encoding"]["xOffset"] = quantitative("jitter", scale={"domain": [-1, 1]}, axis=None)
    crosses = layer(
        mark("point", shape="cross", angle=45, filled=True, size=46, color="var(--red)", opacity=0.8),
        transform=[{"filter": {"field": "status", "equal": "ERROR"}}],
        x=x,
        y={"value": KEY_HEIGHT - 6},
        tooltip=[TRIAL, {"field": "status"}, {"field": f"config{i}", "title": title_text(key.name)}],
    )
    winner = layer(WINNER_MARK, transform=[only_winner(inputs)], x=x, y=y, tooltip=tooltip)
    layers = [*_noise_band(inputs, y), points, crosses, winner]
    return chart(f"{inputs.metric} of each trial against {key.name}", KEY_HEIGHT, layers, data={"name": "trials"})


def _noise_band(inputs: Inputs, y: Spec) -> list[Spec]:
    """Return the band between the winner's value and a value that is worse by one standard deviation of the confirmation.

    The list is empty if the standard deviation is not known or is 0.
    """
    deviation, best = inputs.confirmed.standard_deviation, inputs.best.value
    if not deviation:
        return []
    band = {"from": best - inputs.sign * deviation, "to": best}
    return [layer(mark("rect", color="var(--blue)", opacity=0.13), data=[band], y=y | {"field": "from"}, y2={"field": "to"})]


def _x_axis(i: int, key: Key) -> Spec:
    """Return the encoding of `key`, which has the index `i`, as the x-axis."""
    if not key.numeric:
        return nominal(f"config{i}", title=key.name, sort=[key.label(v) for v in key.categories], axis={"labelAngle": 0, "labelLimit": 90})
    low, high = key.span
    if not key.log:
        return quantitative(f"config{i}", title=key.name, scale={"domain": [low, high], "nice": False}, axis={"tickCount": 5})
    scale = {"domain": [low, high], "nice": False, "type": "log"}
    encoding = quantitative(f"config{i}", title=f"{key.name} (log scale)", scale=scale)
    powers = [10.0**n for n in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]
    if len(powers) >= 2:
        encoding["axis"] = {"values": powers, "format": "~g" if low >= 1e-4 and high <= 1e5 else ".0e"}
    return encoding


def parallel_coordinates(inputs: SweepResult, keys: list[Key]) -> tuple[Spec, str]:
    """Return the figure of the parallel coordinates, and a sentence on the trials that the figure leaves out.

    The figure has one axis for each key and one axis for the metric. Each trial is a line across all axes.
    Lines of better trials are darker. The line of the winner lies on top.
    """
    axes = [f"axis{i}" for i in range(len(keys))] + ["axis_metric"]
    x = _parallel_x(axes, [*(key.name for key in keys), inputs.metric])
    y = quantitative("position", axis=None, scale={"domain": [0, 1]})
    to_points: list[Spec] = [
        WITH_VALUE,
        {"fold": axes, "as": ["axis", "position"]},
        {"filter": "isValid(datum.position)"},
        {"calculate": f"indexof({json.dumps(axes)}, datum.axis)", "as": "order"},
    ]
    line: Spec = {"x": x, "y": y, "order": {"field": "order"}, "tooltip": trial_tooltip(inputs, keys)}
    rules = [{"axis": axis, "position": 0, "top": 1} for axis in axes]
    ranked = [trial for trial, _ in inputs.ranked]
    left_out = left_out_trials(ranked, "lines")
    only_drawn = [{"filter": {"field": "trial", "oneOf": [trial.trial_id for trial in drawn_trials(ranked)]}}] if left_out else []
    layers = [
        layer(mark("rule", color="var(--axis)"), data=rules, x=x, y=y, y2={"field": "top"}),
        layer(
            mark("line", strokeWidth=1.3, opacity=0.6 if len(ranked) <= FEW_LINES else 0.35),
            transform=[*only_drawn, *to_points],
            detail={"field": "trial"},
            color=COLOUR_BY_TIER,
            **line,
        ),
        layer(
            mark("line", strokeWidth=3, color=WINNER_COLOUR, point={"filled": True, "size": 50, "color": WINNER_COLOUR}),
            transform=[only_winner(inputs), *to_points],
            **line,
        ),
    ]
    # Each label is painted twice. The first label has a broad stroke in the colour of the paper, which hides the lines behind the second label.
    for style in ({"stroke": "var(--paper)", "strokeWidth": 4, "color": "var(--paper)"}, {"color": "var(--muted)"}):
        shape = mark("text", align="right", dx=-7, fontSize=11, **style)
        layers.append(layer(shape, data=_parallel_labels(inputs, keys), x=x, y=y, text={"field": "text"}))
    description = f"Parallel coordinates: the configuration of each trial and its {inputs.metric}"
    return chart(description, 300, layers, data={"name": "trials"}, transform=[]), left_out


def _parallel_x(axes: list[str], titles: list[str]) -> Spec:
    """Return the encoding that places the axes side by side, with the title of each axis on top."""
    # The Vega expression contains the titles as JSON text, because Vega's parser reads JSON as an object.
    title_of = json.dumps(dict(zip(axes, titles, strict=True)))
    axis = {
        "orient": "top",
        "domain": False,
        "ticks": False,
        "labelAngle": 0,
        "labelFontWeight": 600,
        "labelColor": "var(--ink)",
        "labelPadding": 12,
        "labelLimit": 110,
        "labelExpr": f"({title_of})[datum.value]",
    }
    return nominal("axis", sort=axes, title=None, scale={"padding": 0.45}, axis=axis)


def _parallel_labels(inputs: SweepResult, keys: list[Key]) -> list[Spec]:
    """Return the labels along all axes of the parallel coordinates."""
    labels = [{"axis": f"axis{i}", "position": p, "text": text} for i, key in enumerate(keys) for p, text in _ticks(key)]
    ends = sorted(set(inputs.value_range))
    return labels + [{"axis": "axis_metric", "position": metric_position(inputs, v), "text": number(v)} for v in ends]


def _ticks(key: Key) -> list[tuple[float, str]]:
    """Return the labels along the axis of `key` as pairs (position from 0 to 1, text)."""
    if not key.numeric:
        return [(key.position(v), key.label(v)[:18]) for v in key.categories]
    low, high = key.span
    if low == high:
        return [(0.5, number(low))]
    product = low * high
    middle = low / 2 + high / 2
    if key.log:  # the product of very large or very small ends is infinite or 0
        middle = math.sqrt(product) if 0 < product < math.inf else math.sqrt(low) * math.sqrt(high)
    integers = all(isinstance(v, int) for v in key.values)
    return [
        (key.position(v), number(v))
        for v in (low, high if integers and high - low < 2 else middle, high)
        if not integers or float(v).is_integer()
    ]


def importance(importances: list[Importance]) -> Spec:
    """Return the figure with a bar for the importance of each key. The most important key is on top."""
    values = [{"key": item.key.name, "share": round(item.share, 4)} for item in importances]
    y = nominal("key", sort=None, title=None, axis={"labelLimit": 160, "ticks": False, "domain": False})
    x = quantitative("share", title="importance", axis={"format": ".0%", "tickCount": 5}, scale={"domain": [0, 1]})
    layers = [
        layer(mark("bar", color="var(--blue)", height=16), x=x, y=y),
        layer(mark("text", align="left", dx=5, color="var(--ink)"), x=x, y=y, text=quantitative("share", format=".0%")),
    ]
    return chart("Importance of each hyper-parameter", max(60, 30 * len(importances)), layers, data={"values": values})


def contour(inputs: SweepResult, keys: list[Key], x_key: Key, y_key: Key) -> Spec:
    """Return the map of two keys, which shows the smoothed metric in levels, and every trial with a value as a point."""
    cells = [
        {
            "left": round(cell.left, 4),
            "right": round(cell.right, 4),
            "bottom": round(cell.bottom, 4),
            "top": round(cell.top, 4),
            "value": cell.value,
            "level": cell.level,
        }
        for cell in landscape(inputs, x_key, y_key)
    ]
    x, y = (_position_axis(f"axis{keys.index(key)}", key) for key in (x_key, y_key))
    tooltip = trial_tooltip(inputs, keys)
    layers = [
        layer(
            mark("rect", stroke=None),
            data=cells,
            x=x | {"field": "left"},
            x2={"field": "right"},
            y=y | {"field": "bottom"},
            y2={"field": "top"},
            color=ordinal("level", scale={"domain": list(range(LEVELS)), "range": TIER_COLOURS}),
            tooltip=[metric_tooltip(f"{inputs.metric}, smoothed")],
        ),
        layer(
            mark("point", filled=True, size=34, color="var(--paper)", stroke="var(--ink)", strokeWidth=1),
            transform=[WITH_VALUE],
            x=x,
            y=y,
            tooltip=tooltip,
        ),
        layer(WINNER_MARK, transform=[only_winner(inputs)], x=x, y=y, tooltip=tooltip),
    ]
    return chart(f"{inputs.metric} over {x_key.name} and {y_key.name}", 300, layers, data={"name": "trials"})


def _position_axis(field: str, key: Key) -> Spec:
    """Return the encoding of an axis with the positions of `key` from 0 to 1. The labels show the values of the key."""
    labels = {f"{position:.6f}": text for position, text in _ticks(key)}
    return quantitative(
        field,
        title=f"{key.name} (log scale)" if key.log else key.name,
        scale={"domain": [0, 1], "nice": False},
        axis={
            "values": [float(position) for position in labels],
            "labelExpr": f"({json.dumps(labels)})[format(datum.value, '.6f')]",
            "labelFlush": True,
        },
    )
