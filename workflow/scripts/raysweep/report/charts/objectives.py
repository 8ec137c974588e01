"""Builds the figures of several objectives: the front, and the hypervolume over time."""

from __future__ import annotations

from raysweep.record.pareto import Point, front_of, hypervolume, point_of, scale
from raysweep.report.charts.course import BEST_LINE
from raysweep.report.charts.parts import (
    TRIAL,
    WINNER_MARK,
    Spec,
    chart,
    layer,
    mark,
    only_winner,
    quantitative,
    running_time_axis,
    time_unit,
)
from raysweep.report.inputs import SweepResult


def front(result: SweepResult, number: int) -> Spec:
    """Return the figure of objective `number` against the first objective. A point is a candidate. A line joins the candidates on the front."""
    objectives = result.sweep.objectives
    names = [objective.metric for objective in objectives]
    on_front = {candidate.trial_id for candidate, _ in result.sweep.front()}
    values = [
        {
            "trial": candidate.trial_id if result.winner not in candidate.members else result.winner.trial_id,
            "front": candidate.trial_id in on_front,
            **{f"objective{i}": report.metrics[name] for i, name in enumerate(names)},
        }
        for candidate, report in result.points
    ]
    tooltip = [TRIAL, *(quantitative(f"objective{i}", title=name, format=".4~g") for i, name in enumerate(names))]
    axes: Spec = {
        axis: quantitative(f"objective{i}", title=names[i], scale={"zero": False, "nice": True}) for axis, i in (("x", number), ("y", 0))
    }
    only_front = [{"filter": "datum.front"}]
    layers = [
        layer(mark("point", filled=True, size=46, opacity=0.5, color="var(--grey)"), tooltip=tooltip, **axes),
        layer(mark("line", color="var(--blue)", strokeWidth=1.5, opacity=0.6), transform=only_front, **axes),
        layer(mark("point", filled=True, size=60, color="var(--blue)"), transform=only_front, tooltip=tooltip, **axes),
        layer(WINNER_MARK, transform=[only_winner(result)], tooltip=tooltip, **axes),
    ]
    return chart(f"Front: {names[0]} against {names[number]} of each candidate", 300, layers, data={"values": values})


def hypervolume_steps(result: SweepResult) -> list[tuple[float, float]]:
    """Return the steps of the hypervolume as pairs (second of running time, hypervolume of the candidates that had ended by then).

    The losses are scaled by the best and the worst value that any candidate reached, so the hypervolume lies between 0 and 1.
    """
    ended = sorted(
        (
            max(result.clock.seconds(member.ended or member.results[-1].at) for member in candidate.members),
            point_of(report.metrics, result.sweep.objectives),
        )
        for candidate, report in result.points
    )
    scaled = scale([point for _, point in ended], [point for _, point in ended])
    steps: list[tuple[float, float]] = []
    best: list[Point] = []
    for (at_s, _), point in zip(ended, scaled, strict=True):
        points = [*best, point]
        best = [points[index] for index in front_of(points)]
        if point in best:
            steps.append((at_s, hypervolume(best)))
    return [*steps, (result.clock.total_s, steps[-1][1])] if steps else []


def hypervolume_over_time(result: SweepResult) -> Spec:
    """Return the figure of the hypervolume against the running time."""
    unit_s, _ = time_unit(result.clock.total_s)
    steps = [{"at": round(at_s / unit_s, 4), "volume": round(volume, 5)} for at_s, volume in hypervolume_steps(result)]
    line = layer(
        BEST_LINE,
        x=running_time_axis("at", result.clock.total_s),
        y=quantitative("volume", title="hypervolume", scale={"zero": False, "nice": True}),
        tooltip=[quantitative("volume", title="hypervolume", format=".4~g")],
    )
    return chart("Hypervolume of the front against the running time of the sweep", 220, [line], data={"values": steps})
