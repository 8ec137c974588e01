"""Builds the figures that compare sweeps by their confirmed seeds, and by the best value so far against the cost."""

from __future__ import annotations

from raysweep.report.analysis import best_until, hours_at, unit_of_cost
from raysweep.report.charts.parts import WINNER_COLOUR, Spec, chart, layer, mark, metric_scale, nominal, quantitative
from raysweep.report.inputs import SweepResult

# These are the colours of Okabe and Ito (https://jfly.uni-koeln.de/color/). People with any type of colour vision can tell the colours apart. After
# the last colour, the colours begin again with dashed lines.
COLOURS = [f"var(--{name})" for name in ("blue", "winner", "green", "red", "sky", "grey")]
DASHES = [[1, 0], [6, 3], [2, 2]]


def colour_of_sweep(position: int) -> str:
    """Return the colour of the sweep at index `position` of its group."""
    return COLOURS[position % len(COLOURS)]


def confirmed_values(group: list[SweepResult]) -> Spec:
    """Return the figure of every confirmed seed of each sweep, with the mean and one standard deviation of the seeds."""
    metric = group[0].metric
    seeds = [{"sweep": sweep.name, "value": value} for sweep in group for value in sweep.confirmed.values]
    means = [
        {"sweep": sweep.name, "mean": mean, "low": mean - deviation, "high": mean + deviation}
        for sweep in group
        if (mean := sweep.confirmed.mean) is not None
        for deviation in [sweep.confirmed.standard_deviation or 0]
    ]
    x = quantitative("value", title=metric, scale={"zero": False, "padding": 14}, axis={"tickCount": 5})
    y = nominal("sweep", sort=[sweep.name for sweep in group], title=None, axis={"labelLimit": 200, "ticks": False})
    layers = [
        layer(mark("rule", strokeWidth=3, color="var(--blue)"), data=means, x=x | {"field": "low"}, x2={"field": "high"}, y=y),
        layer(mark("point", filled=True, size=50, opacity=0.8, color="var(--blue)"), x=x, y=y),
        layer(
            mark("point", shape="diamond", filled=True, size=150, color=WINNER_COLOUR, stroke="var(--paper)"),
            data=means,
            x=x | {"field": "mean"},
            y=y,
            tooltip=[{"field": "sweep"}, {"field": "mean", "format": ".4~g"}],
        ),
    ]
    return chart(f"Confirmed {metric} of the sweeps", max(70, 40 * len(group)), layers, data={"values": seeds})


def best_by_cost(group: list[SweepResult]) -> Spec:
    """Return the figure of each sweep's best validation value so far against the hours that the sweep had been given by then."""
    metric, names = group[0].metric, [sweep.name for sweep in group]
    units = sorted({unit_of_cost(sweep) for sweep in group})
    values = [
        {"sweep": sweep.name, "hours": round(hours_at(sweep, at_s), 5), "value": value}
        for sweep in group
        for at_s, value in best_until(sweep)
    ]
    is_log = all(metric_scale(sweep).get("type") == "log" for sweep in group)
    dashes = [DASHES[i // len(COLOURS) % len(DASHES)] for i in range(len(names))]
    lines = layer(
        mark("line", interpolate="step-after", strokeWidth=2.3),
        x=quantitative("hours", title=" or ".join(units), scale={"zero": True, "nice": False}, axis={"tickCount": 8}),
        y=quantitative("value", title=f"validation {metric}", scale={"type": "log"} if is_log else {"zero": False, "nice": True}),
        tooltip=[{"field": "sweep"}, {"field": "hours", "format": ".3~g"}, {"field": "value", "format": ".4~g"}],
        color=nominal("sweep", scale={"domain": names, "range": [colour_of_sweep(i) for i in range(len(names))]}),
        strokeDash=nominal("sweep", scale={"domain": names, "range": dashes}),
    )
    return chart(f"Best {metric} so far of the sweeps, by cost", 280, [lines], data={"values": values})
