"""Builds the report of a sweep, which is one HTML page that shows the result and how far the reader can trust the result.

The browser opens the page from a file, without a network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysweep.common.errors import logger
from raysweep.common.files import written_aside
from raysweep.common.numeric import is_finite_number
from raysweep.common.text import duration, number, plural, value_text
from raysweep.config.model import Named
from raysweep.config.space import flattened
from raysweep.data.manifest import DataManifest
from raysweep.record.node_times import most_at_a_time
from raysweep.record.trials import Trial
from raysweep.report import analysis
from raysweep.report.charts import confirmation, course, hyperparameters, jobs, objectives, predictions
from raysweep.report.charts.data import shared_data
from raysweep.report.charts.parts import STATUS_COLOURS, TIERS, Columns, Spec, finite
from raysweep.report.failures import failures
from raysweep.report.figures import write_figures
from raysweep.report.inputs import Inputs
from raysweep.report.notes import notes
from raysweep.report.page import html_page, when
from raysweep.report.ranking import tied
from raysweep.report.snippet import path_from, snippet

MAIN_PACKAGES = ("torch", "ray", "numpy", "optuna", "safetensors")
MAX_TRIALS_NAMED = 12  # maximum number of trials that the page names for one cause of failure


# --- figures ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """Contains the figures of a report, the data of the figures, and texts about the figures."""

    specs: dict[str, Spec]  # maps each place on the page to the figure at that place
    data: dict[str, Columns]  # maps a name to a data set that the figures share
    # Maps the place of a figure to a sentence about the data that the figure leaves out. The text is empty if the figure shows all data.
    left_out: dict[str, str]
    hyperparameters: list[str]  # places of the figures that show the metric against one key
    num_axes: int  # number of axes of the parallel coordinates


def figures_of(inputs: Inputs) -> Figures:
    """Return the figures of a sweep. Some figures exist only if the sweep has several trials, several epochs or a scheduler."""
    keys = inputs.varying_keys
    per_key = {f"key{i}": hyperparameters.hyperparameter(inputs, keys, i) for i in range(len(keys))}
    specs, left_out = dict(per_key), {}
    if keys:
        specs["parallel"], left_out["parallel"] = hyperparameters.parallel_coordinates(inputs, keys)
    if ranking := analysis.importances(inputs, keys):
        specs["importance"] = hyperparameters.importance(ranking)
        specs["contour"] = hyperparameters.contour(inputs, keys, ranking[0].key, ranking[1].key)
    if rungs := analysis.rungs(inputs):
        specs["rungs"] = course.rung_diagram(rungs)
    if curves := course.learning_curves(inputs):
        specs["curves"], left_out["curves"] = curves
    if inputs.sweep.objectives:
        specs |= {f"front{number}": objectives.front(inputs, number) for number in range(1, len(inputs.sweep.objectives))}
        specs["hypervolume"] = objectives.hypervolume_over_time(inputs)
    specs["best_so_far"] = course.best_so_far(inputs, keys)
    specs["best_by_cost"], specs["running"] = course.best_by_cost(inputs), course.running(inputs)
    if inputs.gpu_use:
        specs["gpu_use"] = course.gpu_use(inputs)
    if inputs.several_jobs:
        specs["jobs"], left_out["jobs"] = jobs.jobs(inputs)
    specs["timeline"], left_out["timeline"] = course.timeline(inputs)
    specs["confirmation"] = confirmation.confirmation(inputs)
    compared, data = inputs.confirmed.predictions, inputs.data
    if compared is not None and data is not None:
        if compared.confusion:
            specs["confusion"] = predictions.confusion_matrix(compared, data.classes)
        else:
            specs["predicted"], left_out["predicted"] = predictions.predicted_against_true(compared, data.splits["test"])
    return Figures(finite(specs), finite(shared_data(inputs, keys)), left_out, list(per_key), len(keys) + 1)


# --- the table of trials ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """Describes a column of the table of trials."""

    title: str
    number: bool  # whether the column contains numbers; the page sorts and aligns such a column as numbers


@dataclass(frozen=True)
class Row:
    """Describes one trial as a row of the table of trials."""

    cells: list[Any]
    status: str
    winner: bool


@dataclass(frozen=True)
class Table:
    """Describes the table of all trials, sorted from the best trial to the worst trial. Trials without a rank, such as failed trials, come last."""

    columns: list[Column]
    rows: list[Row]


def _table(inputs: Inputs) -> Table:
    """Return the table of all trials."""
    columns = [("trial", False), ("status", False), *((metric, True) for metric in inputs.metrics), ("epoch of it", True), ("epochs", True)]
    columns += [(key.name, all(is_finite_number(v) for v in key.values)) for key in inputs.keys]
    columns += [("time (s)", True), ("node", False), ("started", False), ("seed", True), ("error", False)]
    rank = {trial.trial_id: i for i, (trial, _) in enumerate(inputs.ranked)}
    trials = sorted(inputs.trials, key=lambda t: (rank.get(t.trial_id, len(rank)), t.trial_id))
    return Table([Column(title, is_numeric) for title, is_numeric in columns], [_row(inputs, trial) for trial in trials])


def _front_table(inputs: Inputs) -> Table:
    """Return the table of the configurations on the front of several objectives."""
    columns = [("trial", False), *((metric, True) for metric in inputs.metrics), ("epoch of it", True)]
    columns += [(key.name, all(is_finite_number(v) for v in key.values)) for key in inputs.varying_keys]
    rows = []
    for point in inputs.best.front:
        config = flattened(point.config)
        cells = [point.trial_id, *(_cell(point.metrics[metric]) for metric in inputs.metrics), point.epochs]
        rows.append(
            Row([*cells, *(_cell(config.get(key.name)) for key in inputs.varying_keys)], "", point.trial_id == inputs.best.trial_id)
        )
    return Table([Column(title, is_numeric) for title, is_numeric in columns], rows)


def _row(inputs: Inputs, trial: Trial) -> Row:
    """Return the table row of a trial."""
    result = trial.best(inputs.metric, inputs.mode)
    config = flattened(trial.config)
    cells: list[Any] = [
        trial.trial_id,
        trial.status,
        *(result and _cell(result.metrics[metric]) for metric in inputs.metrics),
        result and result.epoch,
        trial.epochs,
        *(_cell(config.get(key.name)) for key in inputs.keys),
        f"{trial.time_s:.1f}",
        trial.node,
        trial.started and trial.started[:19] + "Z",
        trial.seed,
        trial.error,
    ]
    return Row(["" if cell is None else cell for cell in cells], trial.status, trial is inputs.winner)


def _cell(value: Any) -> str:
    """Return `value` as the text of a table cell. JavaScript can parse the text of a number, so that the page can sort the column by size."""
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else value_text(value)


# --- facts and provenance -----------------------------------------------------------------------------------------------------------


def _counts(inputs: Inputs) -> dict[str, int]:
    """Return the number of trials with each final status."""
    return {status: sum(t.status == status for t in inputs.trials) for status in ("TERMINATED", "STOPPED", "ERROR")}


def _facts(inputs: Inputs) -> list[tuple[str, str]]:
    """Return the facts below the headline of the page as pairs (title, text)."""
    header, trials = inputs.header, inputs.trials
    endings = zip(_counts(inputs).values(), ("finished", "stopped early", "failed"), strict=True)
    ended = ", ".join(f"{count:,} {ending}" for count, ending in endings if count)
    return [
        ("Trials", f"{len(trials):,} ({ended})"),
        ("Epochs", f"up to {header.max_epochs:,} per trial"),
        ("Search", f"{_algorithm(header.search_algorithm)}, scheduler {header.scheduler.name}"),
        ("Running time", f"{duration(inputs.clock.total_s)}, {duration(sum(t.time_s for t in trials))} of training"),
        ("Cost", _cost_text(inputs)),
        ("Ran on", _hardware_text(inputs)),
    ]


def _hardware_text(inputs: Inputs) -> str:
    """Return the numbers of nodes, CPUs and GPUs of the latest session. Where nodes of several jobs joined, return the largest numbers of the whole sweep."""
    jobs, last = inputs.several_jobs, len(inputs.sessions) - 1
    times = [time for time in inputs.node_times if jobs or time.session == last]
    cpus, gpus = most_at_a_time(times, "cpus"), most_at_a_time(times, "gpus")
    text = f"{plural(len({attempt.node for attempt in inputs.attempts}), 'node')}"
    devices = plural(cpus, "CPU") + (f", {plural(gpus, 'GPU')}" if gpus else "")
    text = f"{text} of {len(jobs)} jobs, up to {devices} at a time" if jobs else f"{text}, {devices}"
    percent = analysis.mean_gpu_use(inputs)
    return text if percent is None else f"{text}; GPUs {percent:.0f} % busy"


def _algorithm(algorithm: Named) -> str:
    """Return the name of a search algorithm, and the name of the sampler where the config names one."""
    return f"{algorithm.name} ({algorithm.options['sampler']})" if "sampler" in algorithm.options else algorithm.name


def _cost_text(inputs: Inputs) -> str:
    """Return a text with the cost of the sweep, the cost that early stopping spared, and the planned cost."""
    cost = analysis.cost(inputs)
    text = f"{number(cost.hours)} {cost.unit}"
    if cost.epochs_spared:
        text += f", {number(cost.hours_spared)} spared by stopping early"
    if inputs.plan is not None:
        planned = inputs.plan.gpu_hours if cost.unit == "GPU-hours" else inputs.plan.cpu_hours
        text += f"; planned: {number(planned['low'])} to {number(planned['high'])}"
    return text


def _provenance(inputs: Inputs) -> list[tuple[str, str]]:
    """Return the origin of the result as pairs (title, text)."""
    header, env = inputs.header, inputs.env
    packages = ", ".join(f"{name} {env.packages[name]}" for name in MAIN_PACKAGES if name in env.packages)
    return [
        ("Sweep", f"{inputs.name}, identity {header.identity}"),
        ("Workflow", f"version {inputs.best.provenance.workflow_version}"),
        ("Model", f"{header.model}, trained with {', '.join(filter(None, [f'{header.optimizer} on {header.loss}', str(header.training)]))}")
        if header.model
        else ("Trainable", header.trainable or ""),
        *_data_provenance(inputs),
        ("Environment", f"Python {env.python_version}, {packages}; torch backend {env.torch_backend}, wheels: {env.wheels}"),
        ("Environment, SHA-256", env.environment_sha256),
    ]


def _data_provenance(inputs: Inputs) -> list[tuple[str, str]]:
    """Return the origin and the splits of the data as pairs (title, text). The list is empty if the trainable brings its own data."""
    data = inputs.data
    if data is None:
        return []
    lines = [
        ("Data", f"{data.name}: {data.description.rstrip('.')}; source {data.source}, checksum {data.checksum or 'none'}"),
        ("Data, SHA-256", data.data_sha256),
        *split_lines(data),
    ]
    if data.inputs is not None:
        lines.append(
            (
                "Inputs",
                "standardised with the mean and the standard deviation of the training part, which stand in the manifest of the data",
            )
        )
    if data.target is not None:
        mean, deviation = data.target.mean[0], data.target.deviation[0]
        scaled = f"minus {mean:g}, divided by {deviation:g} (mean and standard deviation of the training part)"
        lines.append(("Target", f"{scaled}; loss and train_loss are of the scaled target, and rmse and mae in the unit of the target"))
    return lines


def split_lines(data: DataManifest) -> list[tuple[str, str]]:
    """Return how the rows of the data were divided, as pairs (title, text)."""
    if data.split == "time":
        by_seed, also_by_seed, share = "", "", ", the last rows"
    else:
        by_seed, also_by_seed = f", drawn with seed {data.seed}", " with the same seed"
        share = f", whole groups of {data.group}" if data.group else ", the same share of each class" if data.classes else ""
    part = f"{data.folds} folds" if data.folds else f"{data.validation_fraction:g} of the training set for validation"
    lines = [("Split", f"{part}{by_seed}{share}")]
    if data.test_fraction is not None:
        rows = "rows" if data.kind else "images"
        lines.append(("Test set", f"{data.test_fraction:g} of all {rows}, set aside{also_by_seed} before that split{share}"))
    return lines


def _sessions(inputs: Inputs) -> list[dict[str, str]]:
    """Return one table row for each session of the sweep."""
    return [
        {
            "start": when(session.at),
            "end": when(session.last_at),
            "outcome": session.outcome or "cut off",
            "host": session.host,
            "nodes": ", ".join(_nodes_of(inputs, number)),
        }
        for number, session in enumerate(inputs.sessions)
    ]


def _nodes_of(inputs: Inputs, number: int) -> Iterable[str]:
    """Return the nodes of session `number` with their sizes, and with their jobs where nodes of several jobs worked on the sweep."""
    texts = []
    for time in inputs.node_times:
        if time.session == number:
            of_job = f"job {time.job}, " if inputs.several_jobs and time.job else ""
            texts.append(f"{time.node.name} ({of_job}{plural(time.node.cpus, 'CPU')}, {plural(time.node.gpus, 'GPU')})")
    return dict.fromkeys(texts)  # a node that was lost and joined again has one entry


# --- the page -----------------------------------------------------------------------------------------------------------------------


def render(inputs: Inputs, figures: Figures, root: Path) -> str:
    """Return the page as HTML with these figures.

    `root` is the folder in which the workflow runs. The page shows paths relative to `root`, and absolute paths for files outside `root`.
    """
    states = {attempt.state for attempt in inputs.attempts}
    return html_page(
        "report.html",
        figures.specs,
        figures.data,
        inputs=inputs,
        header=inputs.header,
        best=inputs.best,
        confirmed=inputs.confirmed,
        config=flattened(inputs.winner.config),
        notes=notes(inputs),
        num_tied=len(tied(inputs)),
        facts=_facts(inputs),
        table=_table(inputs),
        front=_front_table(inputs),
        figures=figures,
        failures=failures(inputs.trials),
        max_trials_named=MAX_TRIALS_NAMED,
        min_trials=analysis.MIN_TRIALS,
        cost_unit=analysis.unit_of_cost(inputs),
        snippet=snippet(inputs, root),
        counts=_counts(inputs),
        tier_names=TIERS,
        states=[(colour, state.lower()) for state, colour in STATUS_COLOURS.items() if state in states],
        python=None if inputs.env.python is None else path_from(root, Path(inputs.env.python)),
        provenance=_provenance(inputs),
        sessions=_sessions(inputs),
        unfinished=inputs.unfinished(),
        figures_dir=path_from(root, inputs.model_dir.parent / "figures"),
    )


def write_report(inputs: Inputs, path_to_output: Path, figures_dir: Path, root: Path) -> None:
    """Write the page and the files of the figures. The file of the page appears only when the page is complete."""
    logger.info("%s: drawing the figures of the report", inputs.name)
    figures = figures_of(inputs)
    page = render(inputs, figures, root)
    with written_aside(path_to_output) as stream:
        stream.write(page)
    write_figures(figures_dir, figures.specs, figures.data, [key.name for key in inputs.varying_keys])
    logger.info("Report: %s (%.1f MB)", path_to_output, len(page.encode()) / 1e6)
