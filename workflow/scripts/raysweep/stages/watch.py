"""Shows a table of a sweep's trials and a plot of the best value so far in the terminal, during the sweep and after the sweep."""

from __future__ import annotations

import itertools
import os
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import plotext
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raysweep.common.errors import ConfigError, RaysweepError, logger
from raysweep.common.files import read_yaml
from raysweep.common.text import duration, number, plural
from raysweep.config.space import flattened
from raysweep.record.file import RecordReader, read_sweep
from raysweep.record.gpu_use import GpuUse, latest_gpu_use
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Trial
from raysweep.slurm.array_jobs import ArrayJob, ArrayJobs
from raysweep.stages.watched_jobs import GOES_ON, array_of, jobs_table, state_with_jobs

INTERVAL_S = 1.0  # shortest time in seconds between two readings of the record
MAX_SHARE_OF_TIME = 0.1  # largest share of a core's time that the view uses, because a frame of 10,000 trials took 0.34 s
PLOT_HEIGHT = 9  # height of the plot in rows of the terminal
NODE_WIDTH = 12  # width of the column with the name of the node, in characters
QUIET_S = 300.0  # age in seconds of the record's last event from which the view warns that the driver may have died
STYLES = {"RUNNING": "cyan", "TERMINATED": "green", "STOPPED": "yellow", "ERROR": "red", "PENDING": "dim"}


# --- find the record -----------------------------------------------------------------------------------------------------------------


def places(path_to_config: Path | None, sweep_name: str | None, state_dir: Path | None) -> tuple[Path, list[str]]:
    """Return the state folder, and the names of the sweeps that the user asks for. Without names the user asks for all sweeps in the state folder.

    Raises ConfigError for a config file that does not exist, that has no sweeps, or that does not have the sweep `sweep_name`.
    """
    names = [] if sweep_name is None else [sweep_name]
    if path_to_config is None:
        return state_dir or Path("state"), names
    if not path_to_config.is_file():
        raise ConfigError(f"--configfile {path_to_config}: there is no such file")
    config = read_yaml(path_to_config)
    sweeps = config.get("sweeps") if isinstance(config, dict) else None
    if not isinstance(sweeps, dict):
        raise ConfigError(f"--configfile {path_to_config}: it has no sweeps. Give the file that Snakemake ran with")
    if sweep_name is not None and sweep_name not in sweeps:
        raise ConfigError(f"--sweep {sweep_name}: {path_to_config} does not have it; it has {', '.join(map(str, sweeps))}")
    return state_dir or Path(config.get("state_dir", "state")), names or list(sweeps)


def find_record(state_dir: Path, names: list[str]) -> Path | None:
    """Return the path of the most recently written record below `state_dir`, or None where there is no record.

    If `names` is not empty, only the records of these sweeps count. A record below the folder of another record belongs to a confirmation and is ignored.
    """
    records = [
        path
        for path in state_dir.rglob("record.jsonl")
        if (not names or path.parent.name in names) and not path.parent.parent.joinpath(path.name).exists()
    ]
    return max(records, key=lambda path: path.stat().st_mtime, default=None)


# --- the state of the sweep ----------------------------------------------------------------------------------------------------------------


def state_of(sweep: Sweep) -> str:
    """Return the state of the last session.

    The state is the outcome of the session, `cut off` where the driver has died without an outcome, or `running` in all other cases.
    """
    last = sweep.sessions[-1]
    if last.outcome is not None:
        return last.outcome
    if last.host == socket.gethostname():
        try:
            os.kill(last.pid, 0)
        except ProcessLookupError:
            return "cut off"
        except PermissionError:
            pass  # the process exists and belongs to another user
    return "running"


def seconds_since(at: str) -> float:
    """Return the number of seconds since the time `at`, which is a text in ISO 8601."""
    return max((datetime.now(UTC) - datetime.fromisoformat(at)) / timedelta(seconds=1), 0.0)


def progress_values(sweep: Sweep) -> list[float]:
    """Return a list with the best value so far after each trial that ended without an error, in the order in which the trials ended."""
    metric, mode = sweep.header.metric, sweep.header.mode
    better = max if mode == "max" else min
    values: list[float] = []
    for trial in sorted((t for t in sweep.trials.values() if t.ended and t.status != "ERROR"), key=lambda t: t.ended or ""):
        if result := trial.best(metric, mode):
            value = result.metrics[metric]
            values.append(better(values[-1], value) if values else value)
    return values


def in_order(sweep: Sweep) -> list[Trial]:
    """Return the trials in the order of the table: running trials first, then the other trials from best to worst, and trials that cannot win last."""
    metric, mode = sweep.header.metric, sweep.header.mode
    return sorted(sweep.trials.values(), key=lambda trial: (trial.status != "RUNNING", *trial.rank(metric, mode)))


# --- the view -----------------------------------------------------------------------------------------------------------------


def summary(sweep: Sweep, state: str, gpu_use: list[GpuUse], width: int) -> Text:
    """Return lines of at most `width` cells with the state of the sweep, counts of trials, the use of the GPUs, the elapsed time and the best value."""
    about = sweep.header
    statuses = [t.status for t in sweep.trials.values()]
    done = sum(t.finished for t in sweep.trials.values())
    running = statuses.count("RUNNING") if state == "running" else 0
    elapsed = sweep.used_s + (seconds_since(sweep.sessions[-1].last_at) if state == "running" else 0)
    counts = [f"{done}/{about.num_trials} trials done", f"{running} running", f"{statuses.count('STOPPED')} stopped early"]
    lines = [f"{about.name}: {state}", ", ".join([*counts, f"{statuses.count('ERROR')} failed", f"{duration(elapsed)} elapsed"])]
    if state == "running" and (of_gpus := gpus_text(sweep, gpu_use)):
        lines.append(of_gpus)
    if best := sweep.best_trial(about.metric, about.mode):
        trial, result = best
        lines.append(f"best {about.metric} {number(result.metrics[about.metric])} at epoch {result.epoch} of trial {trial.trial_id}")
        lines.append(settings(trial.config))
    quiet_s = seconds_since(sweep.sessions[-1].last_at)
    if state == "running" and quiet_s > QUIET_S:
        lines.append(f"nothing new for {duration(quiet_s)}: is the driver on {sweep.sessions[-1].host} still alive?")
    text = Text("\n".join(shortened(line, width) for line in lines))
    text.highlight_words([lines[0]], "bold")
    return text


def gpus_text(sweep: Sweep, gpu_use: list[GpuUse]) -> str:
    """Return how busy the GPUs are, according to the latest measurements of all agents. The text is empty where no GPU was measured in this session."""
    of_session = [use for use in gpu_use if use.at >= sweep.sessions[-1].at]
    percents = [percent for use in of_session for percent in use.percent]
    if not percents:
        return ""
    gpus, nodes = plural(len(percents), "GPU"), plural(len({use.node for use in of_session}), "node")
    span = f" (from {min(percents):.0f} % to {max(percents):.0f} %)" if len(percents) > 1 else ""
    return f"{gpus} on {nodes}: {sum(percents) / len(percents):.0f} % busy{span}"


def settings(config: dict[str, Any]) -> str:
    """Return a configuration as one line of text."""
    return " ".join(f"{key}={number(value) if isinstance(value, float) else value}" for key, value in flattened(config).items())


def shortened(text: str, width: int) -> str:
    """Return `text` in one line, shortened with an ellipsis where the text is wider than `width` cells."""
    text = text.replace("\n", " ")
    return text if cell_len(text) <= width else set_cell_size(text, max(width - 1, 0)) + "…"


def end_of(text: str, width: int) -> str:
    """Return the last `width` characters of the name of a node, because the names of nodes differ at the end."""
    return text if len(text) <= width else "…" + text[1 - width :]


def table_of(sweep: Sweep, width: int, rows: int) -> Table:
    """Return a table of at most `rows` lines of `width` cells, with one line for each trial."""
    about, trials = sweep.header, in_order(sweep)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, width=width)
    table.add_column("trial", no_wrap=True)
    table.add_column("status", no_wrap=True)
    table.add_column("config", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("epoch", no_wrap=True, justify="right")
    table.add_column(Text(about.metric[:12]), no_wrap=True, justify="right")
    table.add_column("node", no_wrap=True)
    table.add_column("time", no_wrap=True, justify="right")
    shown = trials if len(trials) <= rows else trials[: max(rows - 1, 0)]
    for trial in shown:
        result = trial.best(about.metric, about.mode)
        text = trial.error if trial.error else settings(trial.config)
        table.add_row(
            trial.trial_id,
            Text(trial.status, style=STYLES[trial.status]),
            Text(text.replace("\n", " ")),  # rich would read brackets in a plain string as markup
            f"{trial.epochs}/{about.max_epochs}",
            "" if result is None else number(result.metrics[about.metric]),
            Text(end_of(trial.node or "", NODE_WIDTH)),
            duration(trial.time_s),
        )
    if len(shown) < len(trials):
        table.add_row("", "", Text(f"… and {len(trials) - len(shown):,} more", style="dim"))
    return table


def plot_of(sweep: Sweep, width: int) -> Text:
    """Return a plot of the best value so far against the number of ended trials, or an empty text where fewer than two trials have ended."""
    values = progress_values(sweep)
    if len(values) < 2:
        return Text("")
    figure = plotext.figure
    figure.clear()
    figure.theme("colorless")
    figure.plot_size(width, PLOT_HEIGHT)
    ended = list(range(1, len(values) + 1))
    # The curve has points only where the best value changes, and at its end, because drawing thousands of points takes a second.
    better = [x for x in ended if x == 1 or values[x - 1] != values[x - 2]]
    steps = [(x, values[start - 1]) for start, end in itertools.pairwise([*better, len(values)]) for x in (start, end)]
    line = figure.signal([x for x, _ in steps], [y for _, y in steps], marker="hd")
    line.lines()
    figure.draw(line)
    ticks = sorted({1, len(values), *(round(1 + i * (len(values) - 1) / 4) for i in range(1, 4))})
    figure.ruler("x").ticks(ticks, [str(tick) for tick in ticks])
    return Text.assemble((f"best {sweep.header.metric} so far, by trials that ended\n", "bold"), Text.from_ansi(str(figure.build())))


def view(sweep: Sweep, jobs: tuple[ArrayJob, ...] | None, gpu_use: list[GpuUse], width: int, height: int | None) -> Group:
    """Return the summary, the tables and the plot in at most `height` rows, or in any number of rows where `height` is None.

    `jobs` are the jobs of the sweep's job array that have not ended. None: the sweep has no job array, or Slurm does not say. `gpu_use` contains the latest
    measurement of each agent.
    """
    state = state_with_jobs(state_of(sweep), sweep, jobs)
    head, plot = summary(sweep, state, gpu_use, width), plot_of(sweep, width)
    of_jobs = jobs_table(sweep, state, jobs, width, max_rows=None if height is None else max(2, height // 4))
    rows = len(sweep.trials)
    if height is not None:
        used = len(head.plain.splitlines()) + 3  # three more rows for the blank lines and the table's titles
        used += 0 if of_jobs is None else of_jobs.row_count + 2
        if height - used - PLOT_HEIGHT - 1 < 4:
            plot = Text("")
        rows = max(height - used - (len(plot.plain.splitlines()) if plot.plain else 0) - 1, 1)
    parts: list[RenderableType] = [head]
    if of_jobs is not None:
        parts += [Text(""), of_jobs]
    parts += [Text(""), table_of(sweep, width, rows)]
    return Group(*parts, Text(""), plot) if plot.plain else Group(*parts)


def jobs_of(sweep: Sweep, array_jobs: ArrayJobs) -> tuple[ArrayJob, ...] | None:
    """Return the jobs of the sweep's job array that have not ended. Return None without a job array, after the end of the sweep, or if Slurm does not say."""
    array = array_of(sweep)
    return None if array is None or sweep.sessions[-1].outcome in ("complete", "incomplete") else array_jobs.of(array)


def watch(state_dir: Path, names: list[str], once: bool) -> None:
    """Show the sweep until the last session of the sweep ends. Without a terminal, or if `once` is True, print the view once.

    Raises RaysweepError where the view is printed once and there is no record.
    """
    console = Console(highlight=False)
    live_view = console.is_terminal and not once
    path = find_record(state_dir, names)
    sought = f"{' or '.join(names)} below {state_dir}" if names else f"any sweep below {state_dir}"
    if not live_view:
        if path is None or not (sweep := read_sweep(path)).sessions:
            raise RaysweepError(
                f"There is no record of {sought} yet. It is written as soon as run_sweep starts; --state-dir names another folder."
            )
        gpu_use = latest_gpu_use(path.parent)
        console.print(view(sweep, jobs_of(sweep, ArrayJobs()), gpu_use, console.width, None))
        return
    if path is None:
        logger.info("Waiting for the record of %s … (Ctrl-C ends)", sought)
    while path is None:
        time.sleep(INTERVAL_S)
        path = find_record(state_dir, names)
    follow(path, console)


def follow(path: Path, console: Console) -> None:
    """Show the record at `path` and update the view until the last session of the sweep has ended."""
    record, array_jobs = RecordReader(path), ArrayJobs()
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            began_s = time.monotonic()
            sweep = record.read()
            if sweep.sessions:  # there is no session before the driver has written the first line
                jobs = jobs_of(sweep, array_jobs)
                gpu_use = latest_gpu_use(path.parent)
                live.update(view(sweep, jobs, gpu_use, console.width, console.height), refresh=True)
                if state_with_jobs(state_of(sweep), sweep, jobs) not in GOES_ON:
                    return
            time.sleep(max(INTERVAL_S, (time.monotonic() - began_s) / MAX_SHARE_OF_TIME))
