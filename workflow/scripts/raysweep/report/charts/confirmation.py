"""Builds the figure of the confirmation, which shows the value of every seed, the mean of the seeds, and other known values of the winner."""

from __future__ import annotations

from raysweep.report.charts.parts import WINNER_COLOUR, Spec, chart, layer, mark, metric_tooltip, nominal, palette, quantitative
from raysweep.report.inputs import SweepResult


def confirmation(result: SweepResult) -> Spec:
    """Return the figure with the value of every seed, the mean with one standard deviation, and the other known values of the winner."""
    confirmed = result.confirmed
    seeds, mean_row = f"{confirmed.evaluated_on}, each seed", f"{confirmed.evaluated_on}, mean ± SD"
    colours = {seeds: "var(--blue)"} if confirmed.values else {}
    values: list[Spec] = [{"row": seeds, "value": s.value, "what": f"seed {s.seed}"} for s in confirmed.seeds if s.value is not None]

    def add(row: str, colour: str, value: float | None, label: str) -> None:
        if value is not None:
            colours[row] = colour
            values.append({"row": row, "value": value, "what": label})

    if confirmed.standard_deviation is not None:
        add(mean_row, "var(--blue)", confirmed.mean, "mean of the seeds")
    for other in confirmed.others:
        for seed in other.seeds:
            add(f"trial {other.trial_id}, each seed", "var(--sky)", seed.value, f"trial {other.trial_id}, seed {seed.seed}")
    add("validation, winner", WINNER_COLOUR, result.best.value, "validation figure of the winning trial")
    if (published := (confirmed.published_model or {}).get(result.metric)) is not None:
        add("test, published model", "var(--green)", published, "the published model on the test set")
    x = quantitative("value", title=result.metric, scale={"zero": False, "nice": True, "padding": 14}, axis={"tickCount": 5})
    axis = {"labelLimit": 160, "ticks": False, "domain": False, "grid": True}
    y = nominal("row", sort=list(colours), title=None, axis=axis)
    tooltip = [{"field": "what", "title": "of"}, metric_tooltip(result.metric)]
    points = mark("point", filled=True, size=90, opacity=0.9)
    layers = [layer(points, x=x, y=y, color=nominal("row", scale=palette(colours)), tooltip=tooltip)]
    if confirmed.standard_deviation is not None and confirmed.mean is not None:
        low, high = confirmed.mean - confirmed.standard_deviation, confirmed.mean + confirmed.standard_deviation
        rule = mark("rule", strokeWidth=3, color="var(--blue)")
        layers.append(layer(rule, data=[{"row": mean_row, "value": low, "high": high}], x=x, x2={"field": "high"}, y=y))
    return chart(f"Confirmation: {result.metric} of the best configuration", 34 * len(colours), layers, data={"values": values})
