"""Builds the figure of the Slurm jobs that worked on a sweep together: when their nodes joined and were lost, and which job led the sweep."""

from __future__ import annotations

import json

from raysweep.record.node_times import NodeTime
from raysweep.report.charts.data import MAX_BARS, lanes
from raysweep.report.charts.parts import Spec, chart, layer, mark, nominal, ordinal, palette, quantitative, running_time_axis, time_unit
from raysweep.report.inputs import SweepResult

COLOUR_OF_ROLE = {"led the sweep": "var(--blue)", "joined": "var(--sky)"}
LEADER, MEMBER = COLOUR_OF_ROLE


def jobs(result: SweepResult) -> tuple[Spec, str]:
    """Return the figure of the jobs, and a sentence on the nodes that the figure leaves out.

    Each job has one row, or several rows where several of its nodes were a part of the sweep at the same time.
    """
    unit_s, unit = time_unit(result.clock.total_s)
    times = sorted(result.node_times, key=lambda time: time.start_s)
    drawn = times[:MAX_BARS]
    names = _lanes_of_jobs(result)
    rows = lanes([(names.index(_job_name(result, time)), time.start_s, time.end_s) for time in drawn])
    values = [
        {
            "lane": row,
            "job": _job_name(result, time),
            "node": time.node.name,
            "role": LEADER if time.job == result.sessions[time.session].slurm_job else MEMBER,
            "cpus": time.node.cpus,
            "gpus": time.node.gpus,
            "start": round(time.start_s / unit_s, 4),
            "end": round(time.end_s / unit_s, 4),
            "lost": "yes" if time.is_lost else "no",
        }
        for row, time in zip(rows, drawn, strict=True)
    ]
    first_rows = {values[rows.index(row)]["job"]: row for row in sorted(set(rows), reverse=True)}
    labels = json.dumps({str(row): job for job, row in first_rows.items()})
    axis = {"labelExpr": f"({labels})[datum.value] || ''", "labelLimit": 110, "labelOverlap": True, "ticks": False, "domain": False}
    x, y = running_time_axis("start", result.clock.total_s), ordinal("lane", title=None, axis=axis)
    tooltip = [nominal(field, title=field) for field in ("job", "node", "role")]
    tooltip += [quantitative("cpus", title="CPUs"), quantitative("gpus", title="GPUs")]
    tooltip += [quantitative(field, title=f"{field} ({unit})", format=".4~g") for field in ("start", "end")]
    tooltip.append(nominal("lost", title="node lost"))
    layers = [
        layer(mark("bar"), x=x, x2={"field": "end"}, y=y, color=nominal("role", scale=palette(COLOUR_OF_ROLE)), tooltip=tooltip),
        layer(
            mark("point", shape="cross", angle=45, filled=True, size=140, color="var(--red)", stroke="var(--paper)", strokeWidth=1),
            transform=[{"filter": "datum.lost === 'yes'"}],
            x=x | {"field": "end"},
            y=y,
            tooltip=tooltip,
        ),
    ]
    if starts := [{"start": round(result.clock.seconds(session.at) / unit_s, 4)} for session in result.sessions[1:]]:
        layers.append(layer(mark("rule", strokeDash=[4, 3], color="var(--ink)"), data=starts, x=x))
    num_rows = max(rows, default=0) + 1
    height = num_rows * max(8, min(22, 800 // num_rows))
    left_out = f"The first {MAX_BARS:,} of {len(times):,} bars are drawn." if len(times) > MAX_BARS else ""
    return chart("Jobs: when their nodes joined and were lost, and which job led", height, layers, data={"values": values}), left_out


def _job_name(result: SweepResult, time: NodeTime) -> str:
    """Return the id of a node's job. Return the name of the machine where the session ran outside of Slurm."""
    return time.job or result.sessions[time.session].host


def _lanes_of_jobs(result: SweepResult) -> list[str]:
    """Return the names of the jobs in the order of the rows: jobs by themselves first, and then the jobs of job arrays in Slurm's order."""
    names = dict.fromkeys(_job_name(result, time) for time in result.node_times)
    return [name for name in names if name not in result.several_jobs] + [name for name in result.several_jobs if name in names]
