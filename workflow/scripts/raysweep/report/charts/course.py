"""Builds the figures that show the course of a sweep.

The figures show the learning curves, the best value over time and over cost, the number of running trials, the use of the GPUs, the rungs, and the
timeline.
"""

from __future__ import annotations

import json

from raysweep.report.analysis import Rung, at_a_time, best_until, gpu_use_over_time, hours_at, unit_of_cost
from raysweep.report.charts.data import MAX_BARS, lanes, learning_curves_data
from raysweep.report.charts.parts import (
    COLOUR_BY_STATUS,
    COLOUR_BY_TIER,
    SHAPE_BY_STATUS,
    TRIAL,
    WINNER_COLOUR,
    Spec,
    chart,
    layer,
    mark,
    metric_axis,
    metric_tooltip,
    nominal,
    only_winner,
    ordinal,
    palette,
    quantitative,
    running_time_axis,
    time_unit,
    trial_tooltip,
)
from raysweep.report.inputs import Attempt, Inputs, SweepResult
from raysweep.report.keys import Key

BINS = 200  # number of equal parts of the running time; the figure shows the mean number of running trials in each part
BEST_LINE = mark("line", interpolate="step-after", color=WINNER_COLOUR, strokeWidth=2.5)


def learning_curves(result: SweepResult) -> tuple[Spec, str] | None:
    """Return the figure of the metric after each epoch, and a sentence on the data that the figure leaves out.

    Return None if no trial reported twice.
    """
    if max(len(trial.results) for trial in result.trials) < 2:
        return None
    _, left_out = learning_curves_data(result)
    x = quantitative("epoch", title="epoch", axis={"tickMinStep": 1, "format": "d"}, scale={"zero": False, "nice": False})
    axes: Spec = {"x": x, "y": metric_axis(result), "tooltip": [TRIAL, {"field": "epoch"}, metric_tooltip(result.metric)]}
    layers = [
        layer(
            mark("line", strokeWidth=1.3, opacity=0.7, point={"size": 14, "filled": True}),
            detail={"field": "trial"},
            color=COLOUR_BY_TIER,
            **axes,
        ),
        layer(
            mark("line", strokeWidth=3, color=WINNER_COLOUR, point={"filled": True, "size": 40, "color": WINNER_COLOUR}),
            transform=[only_winner(result)],
            **axes,
        ),
    ]
    description = f"Learning curves: {result.metric} after each epoch of each trial"
    return chart(description, 300, layers, data={"name": "curves"}), left_out


def best_so_far(result: SweepResult, keys: list[Key]) -> Spec:
    """Return the figure of the best value so far against the running time. Every trial with a value is a point at the end of the trial."""
    unit_s, unit = time_unit(result.clock.total_s)
    steps = [{"end": round(at_s / unit_s, 4), "value": value} for at_s, value in best_until(result)]
    x = quantitative("end", title=f"running time ({unit})", scale={"zero": True, "nice": False})
    y = metric_axis(result)
    layers = [
        layer(
            mark("point", filled=True, size=36, opacity=0.65),
            transform=[{"filter": "isValid(datum.value) && isValid(datum.end)"}],
            x=x,
            y=y,
            color=COLOUR_BY_STATUS,
            shape=SHAPE_BY_STATUS,
            tooltip=trial_tooltip(result, keys),
        ),
        layer(BEST_LINE, data=steps, x=x, y=y),
    ]
    return chart(f"Best {result.metric} so far against the running time of the sweep", 220, layers, data={"name": "trials"})


def best_by_cost(result: SweepResult) -> Spec:
    """Return the figure of the best value so far against the GPU-hours or CPU-hours that the sweep had been given by then."""
    unit = unit_of_cost(result)
    steps = [{"hours": round(hours_at(result, at_s), 5), "value": value} for at_s, value in best_until(result)]
    line = layer(
        BEST_LINE | {"point": {"color": WINNER_COLOUR}},
        x=quantitative("hours", title=unit, scale={"zero": True, "nice": False}),
        y=metric_axis(result),
        tooltip=[quantitative("hours", title=unit, format=".3~g"), metric_tooltip(result.metric)],
    )
    return chart(f"Best {result.metric} so far against {unit}", 220, [line], data={"values": steps})


def running(result: SweepResult) -> Spec:
    """Return the figure of the number of trials that ran at the same time."""
    total_s = result.clock.total_s
    unit_s, _ = time_unit(total_s)
    steps = [{"at": round(at_s / unit_s, 4), "trials": round(count, 3)} for at_s, count in at_a_time(result, BINS)]
    steps.append({"at": round(total_s / unit_s, 4), "trials": 0})
    area = layer(
        mark("area", interpolate="step-after", color="var(--sky)", opacity=0.5, line={"color": "var(--blue)"}),
        x=running_time_axis("at", total_s),
        y=quantitative("trials", title="trials", axis={"tickMinStep": 1, "tickCount": 4}),
    )
    return chart("Trials that ran at a time", 140, [area], data={"values": steps})


def gpu_use(inputs: Inputs) -> Spec:
    """Return the figure of how busy the GPUs were. The line is the mean of all GPUs, and the area reaches from the least busy to the busiest GPU."""
    total_s = inputs.clock.total_s
    unit_s, unit = time_unit(total_s)
    values = [
        {"at": round(part.at_s / unit_s, 4), **{name: round(getattr(part, name), 1) for name in ("mean", "least_busy", "most_busy")}}
        for part in gpu_use_over_time(inputs)
    ]
    x = running_time_axis("at", total_s)
    scale = {"domain": [0, 100]}
    titles = {"mean": "mean (%)", "least_busy": "least busy GPU (%)", "most_busy": "busiest GPU (%)"}
    tooltip = [quantitative(name, title=title) for name, title in titles.items()]
    tooltip.append(quantitative("at", title=f"running time ({unit})", format=".4~g"))
    layers = [
        layer(
            mark("area", color="var(--sky)", opacity=0.5),
            x=x,
            y=quantitative("least_busy", title="busy (%)", scale=scale),
            y2={"field": "most_busy"},
        ),
        layer(
            mark("line", color="var(--blue)", point={"size": 14, "filled": True}), x=x, y=quantitative("mean", scale=scale), tooltip=tooltip
        ),
    ]
    return chart("How busy the GPUs were", 140, layers, data={"values": values})


def rung_diagram(rungs: list[Rung]) -> Spec:
    """Return the figure of the number of trials that reached each rung, and the number of trials that were stopped at each rung."""
    colours = {"went on": "var(--blue)", "stopped there": "var(--sky)"}
    values = [
        {"epoch": rung.epoch, "fate": fate, "trials": count, "order": order}
        for rung in rungs
        for order, (fate, count) in enumerate(zip(colours, (rung.went_on, rung.stopped), strict=True))
    ]
    bars = layer(
        mark("bar"),
        x=ordinal("epoch", title="trained to epoch", axis={"labelAngle": 0}),
        y=quantitative("trials", title="trials", axis={"tickMinStep": 1}),
        order={"field": "order"},
        color=nominal("fate", scale=palette(colours)),
        tooltip=[{"field": "epoch"}, {"field": "fate"}, {"field": "trials"}],
    )
    return chart("Trials that reached each rung, and those that were stopped there", 220, [bars], data={"values": values})


def timeline(result: SweepResult) -> tuple[Spec, str]:
    """Return the figure that shows when and where each trial ran, and a sentence on the attempts that the figure leaves out.

    Each row belongs to one node. The attempts in one row did not overlap in time.
    """
    attempts, clock = result.attempts, result.clock
    unit_s, unit = time_unit(clock.total_s)
    rows = lanes([(attempt.node, attempt.start_s, attempt.end_s) for attempt in attempts[:MAX_BARS]])
    x, y = running_time_axis("start", clock.total_s), _node_axis(attempts, rows)
    tooltip = [
        TRIAL,
        {"field": "state"},
        quantitative("start", title=f"start ({unit})", format=".4~g"),
        quantitative("end", title=f"end ({unit})", format=".4~g"),
    ]
    bars: Spec = {"x": x, "x2": {"field": "end"}, "y": y}
    layers = [
        layer(mark("bar", stroke="var(--paper)", strokeWidth=0.7), **bars, color=COLOUR_BY_STATUS | {"field": "state"}, tooltip=tooltip),
        layer(
            mark("bar", color=WINNER_COLOUR, stroke="var(--ink)", strokeWidth=1),
            transform=[only_winner(result)],
            **bars,
            tooltip=[TRIAL],
        ),
    ]
    if gaps := [{"start": round(clock.seconds(start) / unit_s, 4)} for start, _ in clock.sessions[1:]]:
        layers.append(layer(mark("rule", strokeDash=[4, 3], color="var(--ink)"), data=gaps, x=x))
    left_out = f"The first {MAX_BARS:,} of {len(attempts):,} runs are drawn." if len(attempts) > MAX_BARS else ""
    num_rows = max(rows, default=0) + 1
    height = num_rows * max(6, min(22, 480 // num_rows))
    return chart("Timeline: when each trial ran, and on which node", height, layers, data={"name": "bars"}), left_out


def _node_axis(attempts: list[Attempt], rows: list[int]) -> Spec:
    """Return the encoding of the rows as the y-axis. The first row of each node shows the name of the node."""
    first_row: dict[str, int] = {}
    for attempt, row in zip(attempts, rows, strict=False):
        first_row[attempt.node] = min(first_row.get(attempt.node, row), row)
    names = json.dumps({str(row): node for node, row in first_row.items()})
    axis = {"labelExpr": f"({names})[datum.value] || ''", "labelLimit": 110, "ticks": False, "domain": False}
    return ordinal("lane", title=None, axis=axis)
