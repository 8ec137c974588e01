"""Shows the Slurm jobs that work on a sweep together (`allocation.jobs`), for `make watch`."""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from raysweep.common.text import plural
from raysweep.record.node_times import array_jobs, node_times
from raysweep.record.sweep import Sweep
from raysweep.slurm.array_jobs import ArrayJob

NO_LEADER = "waiting for the next leader"  # state of a sweep whose leader has ended while other jobs wait or run
GOES_ON = ("running", NO_LEADER)  # states in which the sweep is not over


@dataclass(frozen=True)
class Row:
    """Contains the texts of one row of the table of jobs."""

    job: str
    state: str
    nodes: str
    note: str


def array_of(sweep: Sweep) -> str | None:
    """Return the id of the job array that worked on the sweep in the latest session, or None where the session had a job of its own, or no job."""
    array, underscore, _ = (sweep.sessions[-1].slurm_job or "").partition("_")
    return array if underscore else None


def state_with_jobs(state: str, sweep: Sweep, jobs: tuple[ArrayJob, ...] | None) -> str:
    """Return the state of a sweep. `state` is the state of the latest session, and `jobs` are the jobs that have not ended (None: not known).

    A sweep goes on after the end of the job that led it, while another of its jobs waits or runs.
    """
    leader = sweep.sessions[-1].slurm_job
    is_led = state == "running" and any(job.id == leader and job.state != "PENDING" for job in jobs or ())
    if jobs is None or is_led or state not in ("running", "out of time", "cut off"):
        return state
    return NO_LEADER if jobs else "cut off" if state == "running" else state


def jobs_table(sweep: Sweep, state: str, jobs: tuple[ArrayJob, ...] | None, width: int, max_rows: int | None) -> Table | None:
    """Return a table of the jobs with at most `max_rows` rows below the title (None: no limit).

    Return None without a job array, and after the end of the sweep.
    """
    array = array_of(sweep)
    if array is None or state not in GOES_ON:
        return None
    rows = rows_of(sweep, state, jobs)
    title = Text(f"jobs of {array}: {_counts(sweep, array, jobs)}", style="bold")
    table = Table(
        title=title, title_justify="left", title_style="", show_header=False, box=None, padding=(0, 1, 0, 0), pad_edge=False, width=width
    )
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=width // 3)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows if max_rows is None else shortened_rows(rows, max_rows):
        table.add_row(row.job, row.state, Text(row.nodes), Text(row.note))
    return table


def shortened_rows(rows: list[Row], max_rows: int) -> list[Row]:
    """Return at most `max_rows` rows. If rows are left out, one row says so, and up to half of the others are rows of jobs that wait."""
    if len(rows) <= max_rows:
        return rows
    num_waiting = min(sum(row.state == "PENDING" for row in rows), (max_rows - 1) // 2)
    num_working = max_rows - 1 - num_waiting
    left_out = Row("", "", "", f"… and {plural(len(rows) - num_working - num_waiting, 'more row')}")
    return [*rows[:num_working], left_out, *rows[len(rows) - num_waiting :]]


def rows_of(sweep: Sweep, state: str, jobs: tuple[ArrayJob, ...] | None) -> list[Row]:
    """Return the rows of the table: the leader, the jobs that have joined, other jobs that run, and the jobs that wait.

    Jobs that wait for the same reason, and whose expected start is the same, have one row. Without an answer of Slurm, only the record says which jobs work.
    """
    leader = sweep.sessions[-1].slurm_job if state == "running" else None
    joined: dict[str, list[str]] = {}  # id of a job that is a part of the sweep now → names of the job's nodes
    for time in node_times(sweep) if leader else ():
        if time.session == len(sweep.sessions) - 1 and not time.is_lost:
            joined.setdefault(time.job or "", []).append(time.node.name)
    if jobs is None:
        return [Row(job, "", ",".join(nodes), "leads" if job == leader else "joined") for job, nodes in joined.items()]
    rows = []
    for job in sorted(jobs, key=lambda job: (job.id != leader, job.id not in joined)):
        if job.state != "PENDING":
            note = "leads" if job.id == leader else "joined" if job.id in joined else "not joined yet" if job.state == "RUNNING" else ""
            rows.append(Row(job.id, job.state, job.nodes, note))
    waiting: dict[str, list[str]] = {}
    for job in jobs:
        if job.state == "PENDING":
            waiting.setdefault(_why_waiting(job), []).append(job.id)
    return rows + [Row(ids[0] if len(ids) == 1 else plural(len(ids), "job"), "PENDING", "", note) for note, ids in waiting.items()]


def _why_waiting(job: ArrayJob) -> str:
    """Return Slurm's reason why a job waits, and the expected start where Slurm gives one, without the seconds."""
    start = job.start.replace("T", " ")[:16]
    return f"{job.reason}, expected start {start}" if start else job.reason


def _counts(sweep: Sweep, array: str, jobs: tuple[ArrayJob, ...] | None) -> str:
    """Return the numbers of jobs that run, wait and have ended. A job that ended before it joined is not known any more."""
    if jobs is None:
        return "as the record says, because squeue does not list them"
    ended = {job for job in array_jobs(sweep) if job.startswith(f"{array}_")} - {job.id for job in jobs}
    waiting = sum(job.state == "PENDING" for job in jobs)
    return f"{len(jobs) - waiting} at work, {waiting} waiting" + (f", {len(ended)} ended" if ended else "")
