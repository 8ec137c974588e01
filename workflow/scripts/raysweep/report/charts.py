"""The report's figures: Vega-Lite specifications as plain dicts, and the data they share.

Colours are CSS variables of the page, so that a figure follows the page's theme, in print too, without being drawn again. Fields have
made-up names (`config0`), because Vega reads dots and brackets in a name as a path; what the user wrote appears only as a title or a label.
"""

from __future__ import annotations

import heapq
import json
import math
from typing import Any

from raysweep.common.numeric import is_finite_number
from raysweep.common.text import number, value_text
from raysweep.config.space import Numeric, flattened
from raysweep.record.record import Trial
from raysweep.report.analysis import LEVELS, Importance, Rung, at_a_time, hours_at, landscape, unit_of_cost
from raysweep.report.inputs import CONTINUED, Attempt, Inputs, Key, position_in_range

Spec = dict[str, Any]

MAX_CURVES = 200  # learning curves that are drawn: more are neither readable nor small
BEST_CURVES = 50  # of these the best; the others are spread evenly over the ranks
MAX_POINTS = 100  # of one curve
MAX_BARS = 2000  # of the timeline
BINS = 200  # of the running time, in which it is counted how many trials ran at a time

# Of every figure, on the page and in its file.
CONFIG: dict[str, Any] = {
    "background": None,
    "font": "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--muted)",
        "titleColor": "var(--ink)",
        "gridColor": "var(--line)",
        "domainColor": "var(--axis)",
        "tickColor": "var(--axis)",
        "labelFontSize": 11.5,
        "titleFontSize": 12.5,
        "titleFontWeight": 600,
        "titlePadding": 8,
        "labelPadding": 4,
    },
    "axisX": {"grid": False},
    "legend": {"disable": True},  # the page has its own, which fold on a narrow screen
}

STATUS_COLOURS = {
    "TERMINATED": "var(--blue)",
    "STOPPED": "var(--sky)",
    "ERROR": "var(--red)",
    "RUNNING": "var(--grey)",
    "PENDING": "var(--grey)",
    CONTINUED: "var(--grey)",
}
STATUS_SHAPES = {"TERMINATED": "circle", "STOPPED": "triangle-up", "RUNNING": "square", "PENDING": "square"}
TIERS = ["best fifth", "second", "middle", "fourth", "worst fifth"]
COLOUR_BY_STATUS: Spec = {
    "field": "status",
    "type": "nominal",
    "scale": {"domain": list(STATUS_COLOURS), "range": list(STATUS_COLOURS.values())},
}
SHAPE_BY_STATUS: Spec = {
    "field": "status",
    "type": "nominal",
    "scale": {"domain": list(STATUS_SHAPES), "range": list(STATUS_SHAPES.values())},
}
COLOUR_BY_TIER: Spec = {
    "field": "tier",
    "type": "ordinal",
    "scale": {"domain": TIERS, "range": [f"var(--tier{i})" for i in range(len(TIERS))]},
}
TRIAL: Spec = {"field": "trial"}
WINNER_MARK: Spec = {
    "type": "point",
    "shape": "diamond",
    "filled": True,
    "size": 190,
    "color": "var(--winner)",
    "stroke": "var(--paper)",
    "strokeWidth": 1.5,
}


def shared_data(inputs: Inputs, keys: list[Key]) -> dict[str, dict[str, list[Any]]]:
    """The named data of the figures, a list a column; `trials` are worst first, so that the best are drawn on top."""
    clock = inputs.clock
    unit_s, _ = time_unit(clock.total_s)
    ranked = inputs.ranked
    rank = {trial.trial_id: i for i, (trial, _) in enumerate(ranked)}
    trials = sorted(inputs.trials, key=lambda t: -rank.get(t.trial_id, len(rank)))
    configs = [flattened(t.config) for t in trials]
    columns: dict[str, list[Any]] = {
        "trial": [t.trial_id for t in trials],
        "status": [t.status for t in trials],
        # A failed trial's values count for nothing; figures show where it lies, not how well it did.
        "value": [None if t.status == "ERROR" else inputs.value(t) for t in trials],
        "tier": [tier_of(rank[t.trial_id], len(ranked)) if t.trial_id in rank else None for t in trials],
        "end": [round(clock.seconds(t.ended) / unit_s, 4) if t.ended else None for t in trials],
    }
    for i, key in enumerate(keys):
        values = [config.get(key.name) for config in configs]
        columns[f"config{i}"] = values if key.numeric else [None if v is None else value_text(v) for v in values]
        columns[f"axis{i}"] = [None if v is None else round(key.position(v), 4) for v in values]
    columns["axis_metric"] = [None if v is None else round(_metric_position(inputs, v), 4) for v in columns["value"]]
    curves, _ = _curves(inputs)
    return {"trials": columns, "curves": curves, "bars": _bars(inputs.attempts, unit_s)}


def tier_of(rank: int, count: int) -> str:
    """The fifth of `count` trials that the one of that rank, from 0, is in."""
    return TIERS[len(TIERS) * rank // count]


def time_unit(total_s: float) -> tuple[float, str]:
    """The unit, in seconds and by name, in which a time of that length is shown."""
    return (1.0, "s") if total_s < 180 else (60.0, "min") if total_s < 3 * 3600 else (3600.0, "h")


# --- scales -----------------------------------------------------------------------------------------------------------------------


def metric_scale(inputs: Inputs) -> Spec:
    """A logarithmic scale where values are positive and one of them would squash all others, else a linear one."""
    values = [v for _, v in inputs.ranked]
    wide = min(values) > 0 and max(values) / min(values) > 1000
    return {"type": "log"} if wide else {"zero": False, "nice": True}


def _metric_position(inputs: Inputs, value: float) -> float:
    """Where a value of the metric lies on its axis of the parallel coordinates: the best at 1."""
    values = [v for _, v in inputs.ranked]
    low, high = min(values), max(values)
    position = position_in_range(Numeric("", low, high, metric_scale(inputs).get("type") == "log"), value)
    return position if inputs.mode == "max" else 1 - position


def _x_of(i: int, key: Key) -> Spec:
    """The encoding of a hyper-parameter as x."""
    if not key.numeric:
        return {
            "field": f"config{i}",
            "type": "nominal",
            "title": key.name,
            "sort": [value_text(v) for v in key.categories],
            "axis": {"labelAngle": 0, "labelLimit": 90},
        }
    low, high = key.span
    encoding: Spec = {
        "field": f"config{i}",
        "type": "quantitative",
        "title": key.name,
        "scale": {"domain": [low, high], "nice": False},
    }
    if key.log:
        encoding["scale"]["type"] = "log"
        encoding["title"] = f"{key.name} (log scale)"
        powers = [10.0**n for n in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]
        if len(powers) >= 2:
            encoding["axis"] = {"values": powers, "format": "~g" if low >= 1e-4 and high <= 1e5 else ".0e"}
    else:
        encoding["axis"] = {"tickCount": 5}
    return encoding


def _winner(inputs: Inputs) -> Spec:
    return {"filter": {"field": "trial", "equal": inputs.winner.trial_id}}


def _tooltip(inputs: Inputs, keys: list[Key]) -> list[Spec]:
    """What hovering over a trial shows."""
    shown = [TRIAL, {"field": "status"}, {"field": "value", "type": "quantitative", "title": inputs.metric, "format": ".4~g"}]
    for i, key in enumerate(keys):
        shown.append(
            {"field": f"config{i}", "title": key.name}
            | ({"type": "quantitative", "format": ".4~g"} if key.numeric else {"type": "nominal"})
        )
    return shown


def chart(description: str, height: int, layers: list[Spec], **rest: Any) -> Spec:
    return {"description": description, "width": "container", "height": height, "layer": layers} | rest


# --- figures ----------------------------------------------------------------------------------------------------------------------


def hyperparameter(inputs: Inputs, keys: list[Key], i: int) -> Spec:
    """The metric of every trial against one key; failed trials as crosses at the foot, the winner as a diamond."""
    key, x = keys[i], _x_of(i, keys[i])
    height = 220
    y = {
        "field": "value",
        "type": "quantitative",
        "title": inputs.metric,
        "scale": metric_scale(inputs),
        "axis": {"tickCount": 5},
    }
    layers: list[Spec] = []
    deviation = inputs.confirmed["standard_deviation"]
    best = inputs.best["metric"]["value"]
    if deviation:
        layers.append(
            {
                "data": {"values": [{"from": best - inputs.sign * deviation, "to": best}]},
                "mark": {"type": "rect", "color": "var(--blue)", "opacity": 0.13},
                "encoding": {"y": {**y, "field": "from"}, "y2": {"field": "to"}},
            }
        )
    layers += [
        {
            "transform": [{"filter": "isValid(datum.value)"}],
            "mark": {"type": "point", "filled": True, "size": 46, "opacity": 0.75},
            "encoding": {
                "x": x,
                "y": y,
                "color": COLOUR_BY_STATUS,
                "shape": SHAPE_BY_STATUS,
                "tooltip": _tooltip(inputs, keys),
            }
            | ({} if key.numeric else {"xOffset": {"field": "jitter", "type": "quantitative", "scale": {"domain": [-1, 1]}, "axis": None}}),
        },
        {
            "transform": [{"filter": {"field": "status", "equal": "ERROR"}}],
            "mark": {"type": "point", "shape": "cross", "angle": 45, "filled": True, "size": 46, "color": "var(--red)", "opacity": 0.8},
            "encoding": {
                "x": x,
                "y": {"value": height - 6},
                "tooltip": [TRIAL, {"field": "status"}, {"field": f"config{i}", "title": key.name}],
            },
        },
        {
            "transform": [_winner(inputs)],
            "mark": WINNER_MARK,
            "encoding": {"x": x, "y": y, "tooltip": _tooltip(inputs, keys)},
        },
    ]
    if not key.numeric:  # spread points of one category, by a pattern that is the same every time
        layers[-3]["transform"].append({"calculate": "((toNumber(datum.trial) * 7) % 11 - 5) / 7", "as": "jitter"})
    return chart(f"{inputs.metric} of each trial against {key.name}", height, layers, data={"name": "trials"})


def parallel_coordinates(inputs: Inputs, keys: list[Key]) -> Spec:
    """A line for each trial across an axis for each key that varies, and the metric last; darker is better, the winner on top."""
    axes = [f"axis{i}" for i in range(len(keys))] + ["axis_metric"]
    titles = dict(zip(axes, [*(k.name for k in keys), inputs.metric], strict=True))
    ticks = [{"axis": f"axis{i}", "position": p, "text": text} for i, key in enumerate(keys) for p, text in _ticks(key)]
    ticks += [{"axis": "axis_metric", "position": _metric_position(inputs, v), "text": number(v)} for v in _metric_ticks(inputs)]
    x = {
        "field": "axis",
        "type": "nominal",
        "sort": axes,
        "title": None,
        "scale": {"padding": 0.45},
        # The titles go into an expression of Vega's as a JSON text, which its parser reads as an object.
        "axis": {
            "orient": "top",
            "domain": False,
            "ticks": False,
            "labelAngle": 0,
            "labelFontWeight": 600,
            "labelColor": "var(--ink)",
            "labelPadding": 12,
            "labelLimit": 110,
            "labelExpr": f"({json.dumps(titles)})[datum.value]",
        },
    }
    y = {"field": "position", "type": "quantitative", "axis": None, "scale": {"domain": [0, 1]}}
    lines: list[Spec] = [
        {"filter": "isValid(datum.value)"},
        {"fold": axes, "as": ["axis", "position"]},
        {"filter": "isValid(datum.position)"},
        {"calculate": f"indexof({json.dumps(axes)}, datum.axis)", "as": "order"},
    ]
    tick_text = {"type": "text", "align": "right", "dx": -7, "fontSize": 11}
    return chart(
        f"Parallel coordinates: the configuration of each trial and its {inputs.metric}",
        300,
        [
            {
                "data": {"values": [{"axis": axis, "position": 0, "top": 1} for axis in axes]},
                "mark": {"type": "rule", "color": "var(--axis)"},
                "encoding": {"x": x, "y": y, "y2": {"field": "top"}},
            },
            {
                "transform": lines,
                "mark": {"type": "line", "strokeWidth": 1.3, "opacity": 0.6},
                "encoding": {
                    "x": x,
                    "y": y,
                    "detail": {"field": "trial"},
                    "order": {"field": "order"},
                    "color": COLOUR_BY_TIER,
                    "tooltip": _tooltip(inputs, keys),
                },
            },
            {
                "transform": [_winner(inputs), *lines],
                "mark": {
                    "type": "line",
                    "strokeWidth": 3,
                    "color": "var(--winner)",
                    "point": {"filled": True, "size": 50, "color": "var(--winner)"},
                },
                "encoding": {"x": x, "y": y, "order": {"field": "order"}, "tooltip": _tooltip(inputs, keys)},
            },
            *(
                {"data": {"values": ticks}, "mark": {**tick_text, **style}, "encoding": {"x": x, "y": y, "text": {"field": "text"}}}
                for style in ({"stroke": "var(--paper)", "strokeWidth": 4, "color": "var(--paper)"}, {"color": "var(--muted)"})
            ),
        ],
        data={"name": "trials"},
        transform=[],
    )


def _ticks(key: Key) -> list[tuple[float, str]]:
    """Labels of an axis of the parallel coordinates: (position, text)."""
    if not key.numeric:
        return [(key.position(v), value_text(v)[:18]) for v in key.categories]
    low, high = key.span
    if low == high:
        return [(0.5, number(low))]
    middle = math.sqrt(low * high) if key.log else (low + high) / 2
    integers = all(isinstance(v, int) for v in key.values)
    return [
        (key.position(v), number(v))
        for v in (low, high if integers and high - low < 2 else middle, high)
        if not integers or float(v).is_integer()
    ]


def _metric_ticks(inputs: Inputs) -> list[float]:
    values = [v for _, v in inputs.ranked]
    low, high = min(values), max(values)
    return [low] if low == high else [low, high]


def learning_curves(inputs: Inputs, keys: list[Key]) -> tuple[Spec, str] | None:
    """The metric after each epoch, and what the figure leaves out in words; None where no trial reported twice."""
    if max(len(t.results) for t in inputs.trials) < 2:
        return None
    _, left_out = _curves(inputs)
    x = {
        "field": "epoch",
        "type": "quantitative",
        "title": "epoch",
        "axis": {"tickMinStep": 1, "format": "d"},
        "scale": {"zero": False, "nice": False},
    }
    y = {"field": "value", "type": "quantitative", "title": inputs.metric, "scale": metric_scale(inputs)}
    tooltip = [TRIAL, {"field": "epoch"}, {"field": "value", "type": "quantitative", "title": inputs.metric, "format": ".4~g"}]
    return chart(
        f"Learning curves: {inputs.metric} after each epoch of each trial",
        300,
        [
            {
                "mark": {"type": "line", "strokeWidth": 1.3, "opacity": 0.7, "point": {"size": 14, "filled": True}},
                "encoding": {
                    "x": x,
                    "y": y,
                    "detail": {"field": "trial"},
                    "color": COLOUR_BY_TIER,
                    "tooltip": tooltip,
                },
            },
            {
                "transform": [_winner(inputs)],
                "mark": {
                    "type": "line",
                    "strokeWidth": 3,
                    "color": "var(--winner)",
                    "point": {"filled": True, "size": 40, "color": "var(--winner)"},
                },
                "encoding": {"x": x, "y": y, "tooltip": tooltip},
            },
        ],
        data={"name": "curves"},
    ), left_out


def _curves(inputs: Inputs) -> tuple[dict[str, list[Any]], str]:
    """The data of the learning curves, thinned out where there are too many, and what is left out in words."""
    ranked = [t for t, _ in inputs.ranked]
    rank = {trial.trial_id: i for i, trial in enumerate(ranked)}
    chosen = ranked
    said = []
    if len(ranked) > MAX_CURVES:
        others = ranked[BEST_CURVES:]
        step = len(others) / (MAX_CURVES - BEST_CURVES)
        chosen = ranked[:BEST_CURVES] + [others[int(i * step)] for i in range(MAX_CURVES - BEST_CURVES)]
        said.append(f"{len(chosen)} of {len(ranked):,} curves are drawn: the best {BEST_CURVES}, and the others at even steps of rank.")
    columns: dict[str, list[Any]] = {"trial": [], "epoch": [], "value": [], "tier": []}
    if any(len(t.results) > MAX_POINTS for t in chosen):
        said.append(f"Of each curve at most {MAX_POINTS} epochs are drawn.")
    for trial in reversed(chosen):
        points = [(r.epoch, r.metrics[inputs.metric]) for r in trial.results if is_finite_number(r.metrics.get(inputs.metric))]
        for epoch, value in _thinned(points, trial, inputs):
            columns["trial"].append(trial.trial_id)
            columns["epoch"].append(epoch)
            columns["value"].append(float(f"{value:.5g}"))
            columns["tier"].append(tier_of(rank[trial.trial_id], len(ranked)))
    return columns, " ".join(said)


def _thinned(points: list[tuple[int, float]], trial: Trial, inputs: Inputs) -> list[tuple[int, float]]:
    """At most MAX_POINTS of a curve: the first, the last, the best, and others at even steps."""
    if len(points) <= MAX_POINTS:
        return points
    best = trial.best(inputs.metric, inputs.mode)
    step = (len(points) - 1) / (MAX_POINTS - 2)
    kept = {round(i * step) for i in range(MAX_POINTS - 1)}
    return [p for i, p in enumerate(points) if i in kept or (best is not None and p[0] == best.epoch)]


def best_so_far(inputs: Inputs, keys: list[Key]) -> Spec:
    """Every finished trial's value at the time it ended, and the best until then."""
    unit_s, unit = time_unit(inputs.clock.total_s)
    steps = [{"end": round(at / unit_s, 4), "value": value} for at, value in best_until(inputs)]
    x = {"field": "end", "type": "quantitative", "title": f"running time ({unit})", "scale": {"zero": True, "nice": False}}
    y = {"field": "value", "type": "quantitative", "title": inputs.metric, "scale": metric_scale(inputs)}
    return chart(
        f"Best {inputs.metric} so far against the running time of the sweep",
        220,
        [
            {
                "transform": [{"filter": "isValid(datum.value) && isValid(datum.end)"}],
                "mark": {"type": "point", "filled": True, "size": 36, "opacity": 0.65},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": COLOUR_BY_STATUS,
                    "shape": SHAPE_BY_STATUS,
                    "tooltip": _tooltip(inputs, keys),
                },
            },
            {
                "data": {"values": steps},
                "mark": {"type": "line", "interpolate": "step-after", "color": "var(--winner)", "strokeWidth": 2.5},
                "encoding": {"x": x, "y": y},
            },
        ],
        data={"name": "trials"},
    )


def best_by_cost(inputs: Inputs) -> Spec:
    """The best value until then against what the sweep had been given until then."""
    steps = [{"hours": round(hours_at(inputs, at), 5), "value": value} for at, value in best_until(inputs)]
    return chart(
        f"Best {inputs.metric} so far against {unit_of_cost(inputs)}",
        220,
        [
            {
                "mark": {
                    "type": "line",
                    "interpolate": "step-after",
                    "color": "var(--winner)",
                    "strokeWidth": 2.5,
                    "point": {"color": "var(--winner)"},
                },
                "encoding": {
                    "x": {"field": "hours", "type": "quantitative", "title": unit_of_cost(inputs), "scale": {"zero": True, "nice": False}},
                    "y": {"field": "value", "type": "quantitative", "title": inputs.metric, "scale": metric_scale(inputs)},
                    "tooltip": [
                        {"field": "hours", "type": "quantitative", "title": unit_of_cost(inputs), "format": ".3~g"},
                        {"field": "value", "type": "quantitative", "title": inputs.metric, "format": ".4~g"},
                    ],
                },
            }
        ],
        data={"values": steps},
    )


def best_until(inputs: Inputs) -> list[tuple[float, float]]:
    """The best value of trials that had ended, from which second of running time on, to the end of the sweep."""
    steps: list[tuple[float, float]] = []
    for at, value in sorted((inputs.clock.seconds(t.ended), v) for t, v in inputs.ranked if t.ended):
        if not steps or inputs.sign * value > inputs.sign * steps[-1][1]:
            steps.append((at, value))
    return [*steps, (inputs.clock.total_s, steps[-1][1])] if steps else []


def running(inputs: Inputs) -> Spec:
    """How many trials ran at a time."""
    unit_s, unit = time_unit(inputs.clock.total_s)
    steps = [{"at": round(at / unit_s, 4), "trials": round(count, 3)} for at, count in at_a_time(inputs, BINS)]
    steps.append({"at": round(inputs.clock.total_s / unit_s, 4), "trials": 0})
    return chart(
        "Trials that ran at a time",
        140,
        [
            {
                "mark": {
                    "type": "area",
                    "interpolate": "step-after",
                    "color": "var(--sky)",
                    "opacity": 0.5,
                    "line": {"color": "var(--blue)"},
                },
                "encoding": {
                    "x": {
                        "field": "at",
                        "type": "quantitative",
                        "title": f"running time ({unit})",
                        "scale": {"domain": [0, max(inputs.clock.total_s, 1e-3) / unit_s], "nice": False},
                    },
                    "y": {"field": "trials", "type": "quantitative", "title": "trials", "axis": {"tickMinStep": 1, "tickCount": 4}},
                },
            }
        ],
        data={"values": steps},
    )


def importance(found: list[Importance]) -> Spec:
    """A bar for each key, the most important on top."""
    values = [{"key": one.key.name, "share": round(one.share, 4)} for one in found]
    y = {"field": "key", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 160, "ticks": False, "domain": False}}
    x = {
        "field": "share",
        "type": "quantitative",
        "title": "importance",
        "axis": {"format": ".0%", "tickCount": 5},
        "scale": {"domain": [0, 1]},
    }
    return chart(
        "Importance of each hyper-parameter",
        max(60, 30 * len(found)),
        [
            {"mark": {"type": "bar", "color": "var(--blue)", "height": 16}, "encoding": {"x": x, "y": y}},
            {
                "mark": {"type": "text", "align": "left", "dx": 5, "color": "var(--ink)"},
                "encoding": {"x": x, "y": y, "text": {"field": "share", "type": "quantitative", "format": ".0%"}},
            },
        ],
        data={"values": values},
    )


def contour(inputs: Inputs, keys: list[Key], x_key: Key, y_key: Key) -> Spec:
    """The smoothed metric over two keys, in levels, and every trial as a point on it."""
    cells = [
        {
            "left": round(c.left, 4),
            "right": round(c.right, 4),
            "bottom": round(c.bottom, 4),
            "top": round(c.top, 4),
            "value": c.value,
            "level": c.level,
        }
        for c in landscape(inputs, x_key, y_key)
    ]
    x, y = ({"field": f"axis{keys.index(key)}", "type": "quantitative"} | _position_axis(key) for key in (x_key, y_key))
    colour = {
        "field": "level",
        "type": "ordinal",
        "scale": {"domain": list(range(LEVELS)), "range": [f"var(--tier{i})" for i in range(LEVELS)]},
    }
    return chart(
        f"{inputs.metric} over {x_key.name} and {y_key.name}",
        300,
        [
            {
                "data": {"values": cells},
                "mark": {"type": "rect", "stroke": None},
                "encoding": {
                    "x": x | {"field": "left"},
                    "x2": {"field": "right"},
                    "y": y | {"field": "bottom"},
                    "y2": {"field": "top"},
                    "color": colour,
                    "tooltip": [{"field": "value", "type": "quantitative", "title": f"{inputs.metric}, smoothed", "format": ".4~g"}],
                },
            },
            {
                "transform": [{"filter": "isValid(datum.value)"}],
                "mark": {"type": "point", "filled": True, "size": 34, "color": "var(--paper)", "stroke": "var(--ink)", "strokeWidth": 1},
                "encoding": {"x": x, "y": y, "tooltip": _tooltip(inputs, keys)},
            },
            {
                "transform": [_winner(inputs)],
                "mark": WINNER_MARK,
                "encoding": {"x": x, "y": y, "tooltip": _tooltip(inputs, keys)},
            },
        ],
        data={"name": "trials"},
    )


def _position_axis(key: Key) -> Spec:
    """An axis of positions from 0 to 1, with the key's own values as labels."""
    labels = {f"{position:.6f}": text for position, text in _ticks(key)}
    return {
        "title": f"{key.name} (log scale)" if key.log else key.name,
        "scale": {"domain": [0, 1], "nice": False},
        "axis": {
            "values": [float(position) for position in labels],
            "labelExpr": f"({json.dumps(labels)})[format(datum.value, '.6f')]",
            "labelFlush": True,
        },
    }


def rung_diagram(found: list[Rung]) -> Spec:
    """How many trials reached each epoch at which some were stopped, and what became of them."""
    values = [
        {"epoch": rung.epoch, "fate": fate, "trials": count, "order": order}
        for rung in found
        for order, (fate, count) in enumerate((("went on", rung.went_on), ("stopped there", rung.stopped)))
    ]
    x = {"field": "epoch", "type": "ordinal", "title": "trained to epoch", "axis": {"labelAngle": 0}}
    return chart(
        "Trials that reached each rung, and those that were stopped there",
        220,
        [
            {
                "mark": {"type": "bar"},
                "encoding": {
                    "x": x,
                    "y": {"field": "trials", "type": "quantitative", "title": "trials", "axis": {"tickMinStep": 1}},
                    "order": {"field": "order"},
                    "color": {
                        "field": "fate",
                        "type": "nominal",
                        "scale": {"domain": ["went on", "stopped there"], "range": ["var(--blue)", "var(--sky)"]},
                    },
                    "tooltip": [{"field": "epoch"}, {"field": "fate"}, {"field": "trials"}],
                },
            }
        ],
        data={"values": values},
    )


def timeline(inputs: Inputs) -> tuple[Spec, str]:
    """When each trial ran and where, a row for each place of a node, and what the figure leaves out in words."""
    attempts = inputs.attempts
    clock = inputs.clock
    unit_s, unit = time_unit(clock.total_s)
    lanes = _lanes(attempts[:MAX_BARS])
    first: dict[str, int] = {}
    for attempt, lane in zip(attempts, lanes, strict=False):
        first[attempt.node] = min(first.get(attempt.node, lane), lane)
    labels = {str(lane): node for node, lane in first.items()}
    gaps = [clock.seconds(start) for start, _ in clock.sessions[1:]]
    x = {
        "field": "start",
        "type": "quantitative",
        "title": f"running time ({unit})",
        "scale": {"domain": [0, max(clock.total_s, 1e-3) / unit_s], "nice": False},
    }
    y = {
        "field": "lane",
        "type": "ordinal",
        "title": None,
        "axis": {"labelExpr": f"({json.dumps(labels)})[datum.value] || ''", "labelLimit": 110, "ticks": False, "domain": False},
    }
    layers: list[Spec] = [
        {
            "mark": {"type": "bar", "stroke": "var(--paper)", "strokeWidth": 0.7},
            "encoding": {
                "x": x,
                "x2": {"field": "end"},
                "y": y,
                "color": {**COLOUR_BY_STATUS, "field": "state"},
                "tooltip": [
                    TRIAL,
                    {"field": "state"},
                    {"field": "start", "type": "quantitative", "title": f"start ({unit})", "format": ".4~g"},
                    {"field": "end", "type": "quantitative", "title": f"end ({unit})", "format": ".4~g"},
                ],
            },
        },
        {
            "transform": [_winner(inputs)],
            "mark": {"type": "bar", "color": "var(--winner)", "stroke": "var(--ink)", "strokeWidth": 1},
            "encoding": {"x": x, "x2": {"field": "end"}, "y": y, "tooltip": [TRIAL]},
        },
    ]
    if gaps:
        layers.append(
            {
                "data": {"values": [{"start": round(g / unit_s, 4)} for g in gaps]},
                "mark": {"type": "rule", "strokeDash": [4, 3], "color": "var(--ink)"},
                "encoding": {"x": x},
            }
        )
    said = f"The first {MAX_BARS:,} of {len(attempts):,} runs are drawn." if len(attempts) > MAX_BARS else ""
    rows = max(lanes, default=0) + 1
    height = rows * max(6, min(22, 480 // rows))
    return chart("Timeline: when each trial ran, and on which node", height, layers, data={"name": "bars"}), said


def _lanes(attempts: list[Attempt]) -> list[int]:
    """The row of each attempt: on every node the lowest one that is free, the nodes below each other in the order of their names."""
    result: dict[int, tuple[str, int]] = {}
    free: dict[str, list[int]] = {}
    busy: dict[str, list[tuple[float, int]]] = {}
    for i, attempt in enumerate(attempts):
        waiting, running = free.setdefault(attempt.node, []), busy.setdefault(attempt.node, [])
        while running and running[0][0] <= attempt.start_s:
            heapq.heappush(waiting, heapq.heappop(running)[1])
        lane = heapq.heappop(waiting) if waiting else len(running)
        heapq.heappush(running, (max(attempt.end_s, attempt.start_s), lane))
        result[i] = (attempt.node, lane)
    rows = {place: row for row, place in enumerate(sorted(set(result.values())))}
    return [rows[result[i]] for i in range(len(attempts))]


def _bars(attempts: list[Attempt], unit_s: float) -> dict[str, list[Any]]:
    drawn = attempts[:MAX_BARS]
    return {
        "trial": [a.trial.trial_id for a in drawn],
        "lane": _lanes(drawn),
        "state": [a.state for a in drawn],
        "start": [round(a.start_s / unit_s, 4) for a in drawn],
        "end": [round(a.end_s / unit_s, 4) for a in drawn],
    }


def confirmation(inputs: Inputs) -> Spec:
    """Every seed's value, their mean with one standard deviation, and beside them what else is known of the winner."""
    confirmed = inputs.confirmed
    where, mean, deviation = confirmed["evaluated_on"], confirmed["mean"], confirmed["standard_deviation"]
    published = (confirmed["published_model"] or {}).get(inputs.metric)
    points = [(f"{where}, each seed", "var(--blue)", s["value"], f"seed {s['seed']}") for s in confirmed["seeds"] if s["value"] is not None]
    if deviation is not None:
        points.append((f"{where}, mean ± SD", "var(--blue)", mean, "mean of the seeds"))
    points.append(("validation, winner", "var(--winner)", inputs.best["metric"]["value"], "validation figure of the winning trial"))
    if published is not None:
        points.append(("test, published model", "var(--green)", published, "the published model on the test set"))
    colours = {row: colour for row, colour, _, _ in points}
    x = {
        "field": "value",
        "type": "quantitative",
        "title": inputs.metric,
        "scale": {"zero": False, "nice": True, "padding": 14},
        "axis": {"tickCount": 5},
    }
    y = {
        "field": "row",
        "type": "nominal",
        "sort": list(colours),
        "title": None,
        "axis": {"labelLimit": 160, "ticks": False, "domain": False, "grid": True},
    }
    layers: list[Spec] = [
        {
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 0.9},
            "encoding": {
                "x": x,
                "y": y,
                "color": {"field": "row", "type": "nominal", "scale": {"domain": list(colours), "range": list(colours.values())}},
                "tooltip": [
                    {"field": "what", "title": "of"},
                    {"field": "value", "type": "quantitative", "title": inputs.metric, "format": ".4~g"},
                ],
            },
        },
    ]
    if deviation is not None:
        spread = {"row": f"{where}, mean ± SD", "value": mean - deviation, "high": mean + deviation}
        layers.append(
            {
                "data": {"values": [spread]},
                "mark": {"type": "rule", "strokeWidth": 3, "color": "var(--blue)"},
                "encoding": {"x": x, "x2": {"field": "high"}, "y": y},
            }
        )
    values = [{"row": row, "value": value, "what": what} for row, _, value, what in points]
    return chart(f"Confirmation: {inputs.metric} of the best configuration", 34 * len(colours), layers, data={"values": values})
