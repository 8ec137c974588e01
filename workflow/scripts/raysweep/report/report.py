"""The report of a sweep: one HTML page that opens from a file, needs no network, and says what the result is and why one may believe it."""

from __future__ import annotations

import json
import keyword
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from pprint import PrettyPrinter
from typing import Any

from raysweep.common.errors import logger
from raysweep.common.files import written_aside
from raysweep.common.numeric import is_finite_number
from raysweep.common.text import duration, number, plural, value_text
from raysweep.config.space import TRAINING_KEYS, flattened
from raysweep.record.record import Trial
from raysweep.report import analysis as report_analysis
from raysweep.report import charts as report_charts
from raysweep.report import figures as report_figures
from raysweep.report.inputs import Inputs
from raysweep.report.notes import failures, notes, tied
from raysweep.report.page import html_page, when
from raysweep.usercode.target import find_target

MAIN_PACKAGES = ("torch", "ray", "numpy", "optuna", "safetensors")
MAX_TRIALS_NAMED = 12  # of one cause of failure


# --- how to use the result ----------------------------------------------------------------------------------------------------------


def snippet(inputs: Inputs, root: Path) -> str:
    """A program that loads the best model and classifies a few images; run in `root`, the folder that the workflow runs in."""
    if inputs.about.get("model"):
        return _model_snippet(inputs, root)
    return "\n".join(
        [
            "from pathlib import Path",
            "",
            f"config = {_source(inputs.winner.config)}",
            f"checkpoint = Path({_quoted(_relative(inputs.model_dir, root))})",
            "",
            "print(config)",
            'print(*sorted(checkpoint.rglob("*")), sep="\\n")',
        ]
    )


def _model_snippet(inputs: Inputs, root: Path) -> str:
    target = find_target(inputs.about["model"], root)
    arguments = {k: v for k, v in inputs.winner.config.items() if k not in TRAINING_KEYS}
    import_root = _relative(target.import_root, root)
    lines = ["import sys", "", "import numpy as np", "import torch", "from safetensors.torch import load_model", ""]
    lines.append(f"sys.path.insert(0, {_quoted(import_root)})  # where the model's source lies")
    module = target.module or target.path.stem
    if all(part.isidentifier() and not keyword.iskeyword(part) for part in module.split(".")):
        lines.append(f"from {module} import {target.name}")
    else:  # a file such as my-model.py
        lines += ["import importlib", "", f"{target.name} = importlib.import_module({module!r}).{target.name}"]
    if all(k.isidentifier() and not keyword.iskeyword(k) for k in arguments):
        call = ", ".join(f"{k}={_source(v, width=sys.maxsize)}" for k, v in arguments.items())
    else:
        call = f"**{_source(arguments, width=sys.maxsize)}"
    lines += [
        "",
        f"model = {target.name}({call})",
        f"load_model(model, {_quoted(_relative(inputs.model_dir, root) + '/model.safetensors')})",
        "model.eval()",
    ]
    if inputs.data is not None and inputs.data_dir is not None:
        channels_and_size = inputs.data.image_shape
        images = f"{_relative(inputs.data_dir, root)}/validation/images.npy"
        lines += [
            "",
            f"classes = {_source(list(inputs.data.classes))}",
            f'images = np.load({_quoted(images)}, mmap_mode="r")[:8]  # uint8, shape (n, {", ".join(map(str, channels_and_size))})',
            "inputs = torch.from_numpy(images.copy()).float() / 127.5 - 1  # from 0…255 to -1…1, as in the training",
            "with torch.no_grad():",
            "    for label in model(inputs).argmax(dim=1):",
            "        print(classes[label])",
        ]
    return "\n".join(lines)


class _SourcePrinter(PrettyPrinter):
    """Writes infinity and NaN, for which Python has no literal, so that Python reads them again."""

    def format(self, object: Any, context: dict[int, int], maxlevels: int, level: int) -> tuple[str, bool, bool]:
        if isinstance(object, float) and not math.isfinite(object):
            return f'float("{object}")', True, False
        return super().format(object, context, maxlevels, level)


def _source(value: Any, width: int = 100) -> str:
    """A value of the config as Python."""
    return _SourcePrinter(width=width, compact=True, sort_dicts=False).pformat(value)


def _quoted(value: str) -> str:
    """Text as Python with double quotes: what JSON writes of it is Python too."""
    return json.dumps(value, ensure_ascii=False)


def _relative(path: Path, root: Path) -> str:
    """`path` as seen from `root`, or in full where it lies outside."""
    text = os.path.relpath(os.path.abspath(path), root)  # resolve() would follow links
    return os.path.abspath(path) if text.startswith("..") else Path(text).as_posix()


# --- what the page shows ------------------------------------------------------------------------------------------------------------


def _table(inputs: Inputs) -> dict[str, Any]:
    """The table of all trials, best first, failed ones last: its columns, of numbers or of words, and its rows."""
    columns = [("trial", False), ("status", False), (inputs.metric, True), ("epoch of it", True), ("epochs", True)]
    columns += [(key.name, all(is_finite_number(v) for v in key.values)) for key in inputs.keys]
    columns += [("time (s)", True), ("node", False), ("started", False), ("seed", True), ("error", False)]
    order = {t.trial_id: i for i, (t, _) in enumerate(inputs.ranked)}
    rows = [_row(inputs, t) for t in sorted(inputs.trials, key=lambda t: (order.get(t.trial_id, len(order)), t.trial_id))]
    return {"columns": [{"title": title, "number": numeric} for title, numeric in columns], "rows": rows}


def _row(inputs: Inputs, trial: Trial) -> dict[str, Any]:
    result = trial.best(inputs.metric, inputs.mode)
    config = flattened(trial.config)
    cells: list[Any] = [
        trial.trial_id,
        trial.status,
        result and _cell(result.metrics[inputs.metric]),
        result and result.epoch,
        trial.epochs,
    ]
    cells += [_cell(config.get(key.name)) for key in inputs.keys]
    cells += [f"{trial.time_s:.1f}", trial.node, trial.started and trial.started[:19] + "Z", trial.seed, trial.error]
    return {"cells": ["" if c is None else c for c in cells], "status": trial.status, "winner": trial is inputs.winner}


def _cell(value: Any) -> str:
    """A value in a table: numbers so that JavaScript reads them again."""
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else value_text(value)


def _counts(inputs: Inputs) -> dict[str, int]:
    """How many trials ended in which way."""
    return {status: sum(t.status == status for t in inputs.trials) for status in ("TERMINATED", "STOPPED", "ERROR")}


def _facts(inputs: Inputs) -> list[tuple[str, str]]:
    """The line of figures below the headline."""
    about, trials = inputs.about, inputs.trials
    counts = _counts(inputs)
    ended = ", ".join(f"{n:,} {text}" for n, text in zip(counts.values(), ("finished", "stopped early", "failed"), strict=True) if n)
    nodes = list(dict.fromkeys(a.node for a in inputs.attempts))
    hardware = inputs.sweep.sessions[-1]["nodes"]
    cpus, gpus = sum(n["cpus"] for n in hardware), sum(n["gpus"] for n in hardware)
    cost = report_analysis.cost(inputs)
    spared = f", {number(cost.hours_spared)} spared by stopping early" if cost.epochs_spared else ""
    planned = inputs.plan["gpu_hours" if cost.unit == "GPU-hours" else "cpu_hours"] if inputs.plan else None
    foretold = f"; planned: {number(planned['low'])} to {number(planned['high'])}" if planned else ""
    return [
        ("Trials", f"{len(trials):,} ({ended})"),
        ("Epochs", f"up to {about['max_epochs']:,} per trial"),
        ("Search", f"{about['search_algorithm']['name']}, scheduler {about['scheduler']['name']}"),
        ("Running time", f"{duration(inputs.clock.total_s)}, {duration(sum(t.time_s for t in trials))} of training"),
        ("Cost", f"{number(cost.hours)} {cost.unit}{spared}{foretold}"),
        ("Ran on", f"{plural(len(nodes), 'node')}, {plural(cpus, 'CPU')}" + (f", {plural(gpus, 'GPU')}" if gpus else "")),
    ]


def charts_of(inputs: Inputs) -> dict[str, Any]:
    """The figures by their place on the page, and what each leaves out."""
    keys = [key for key in inputs.keys if key.varies]
    result: dict[str, Any] = {"specs": {}, "left_out": {}, "hyperparameters": []}
    specs = result["specs"]
    for i, key in enumerate(keys):
        specs[f"key{i}"] = report_charts.hyperparameter(inputs, keys, i)
        result["hyperparameters"].append({"id": f"key{i}", "name": key.name})
    if keys:
        specs["parallel"] = report_charts.parallel_coordinates(inputs, keys)
        result["num_axes"] = len(keys) + 1
    ranking = report_analysis.importances(inputs, keys)
    if ranking:
        specs["importance"] = report_charts.importance(ranking)
        specs["contour"] = report_charts.contour(inputs, keys, ranking[0].key, ranking[1].key)
    if rungs := report_analysis.rungs(inputs):
        specs["rungs"] = report_charts.rung_diagram(rungs)
    if curves := report_charts.learning_curves(inputs, keys):
        specs["curves"], result["left_out"]["curves"] = curves
    specs["best_so_far"] = report_charts.best_so_far(inputs, keys)
    specs["best_by_cost"], specs["running"] = report_charts.best_by_cost(inputs), report_charts.running(inputs)
    specs["timeline"], result["left_out"]["timeline"] = report_charts.timeline(inputs)
    specs["confirmation"] = report_charts.confirmation(inputs)
    result["data"] = report_charts.shared_data(inputs, keys)
    return result


def _provenance(inputs: Inputs) -> list[tuple[str, str]]:
    """Where the result came from: (what, text)."""
    about, best, env = inputs.about, inputs.best["provenance"], inputs.env
    found = [("Sweep", f"{inputs.name}, identity {about['identity']}"), ("Workflow", f"version {best['workflow_version']}")]
    if about.get("model"):
        found.append(("Model", f"{about['model']}, trained with {about['optimizer']} on {about['loss']}"))
    else:
        found.append(("Trainable", about["trainable"]))
    if inputs.data is not None:
        data = inputs.data
        found += [
            ("Data", f"{data.name}: {data.description.rstrip('.')}; source {data.source}, checksum {data.checksum or 'none'}"),
            ("Data, SHA-256", data.data_sha256),
            (
                "Split",
                f"{data.validation_fraction:g} of the training set for validation, drawn with seed {data.seed}, the same share of each class",
            ),
        ]
        if data.test_fraction is not None:
            found.append(
                (
                    "Test set",
                    f"{data.test_fraction:g} of all images, set aside with the same seed before that split, the same share of each class",
                )
            )
    packages = env["packages"]
    main = ", ".join(f"{name} {packages[name]}" for name in MAIN_PACKAGES if name in packages)
    found += [
        ("Environment", f"Python {env['python_version']}, {main}; torch backend {env['torch_backend']}, wheels: {env['wheels']}"),
        ("Environment, SHA-256", env["environment_sha256"]),
    ]
    return found


def _sessions(inputs: Inputs) -> Iterator[dict[str, str]]:
    for session, (start, end) in zip(inputs.sweep.sessions, inputs.clock.sessions, strict=True):
        nodes = ", ".join(f"{n['name']} ({plural(n['cpus'], 'CPU')}, {plural(n['gpus'], 'GPU')})" for n in session["nodes"])
        yield {
            "start": when(start),
            "end": when(end),
            "outcome": session.get("outcome") or "cut off",
            "host": session["host"],
            "nodes": nodes,
        }


def render(inputs: Inputs, charts: dict[str, Any], root: Path) -> str:
    """The page with these figures. `root` is the folder that the workflow runs in; paths on the page start there."""
    python = inputs.env.get("python")
    return html_page(
        "report.html",
        charts["specs"],
        charts["data"],
        inputs=inputs,
        about=inputs.about,
        best=inputs.best,
        confirmed=inputs.confirmed,
        config=flattened(inputs.winner.config),
        notes=notes(inputs),
        num_tied=len(tied(inputs)),
        facts=_facts(inputs),
        table=_table(inputs),
        charts=charts,
        failures=failures(inputs.trials),
        max_trials_named=MAX_TRIALS_NAMED,
        least_trials=report_analysis.MIN_TRIALS,
        cost_unit=report_analysis.unit_of_cost(inputs),
        snippet=snippet(inputs, root),
        counts=_counts(inputs),
        tier_names=report_charts.TIERS,
        states=[(colour, s.lower()) for s, colour in report_charts.STATUS_COLOURS.items() if any(a.state == s for a in inputs.attempts)],
        python=None if python is None else _relative(Path(python), root),
        provenance=_provenance(inputs),
        sessions=list(_sessions(inputs)),
        unfinished=inputs.unfinished(),
        figures=_relative(inputs.model_dir.parent / "figures", root),
    )


def write_report(inputs: Inputs, path_to_output: Path, figures_dir: Path, root: Path) -> None:
    """Write the page, whole or not at all, and the figures as files."""
    charts = charts_of(inputs)
    page = render(inputs, charts, root)
    with written_aside(path_to_output) as stream:
        stream.write(page)
    names = [key.name for key in inputs.keys if key.varies]
    report_figures.write_figures(figures_dir, charts["specs"], charts["data"], names)
    logger.info("Report: %s (%.1f MB)", path_to_output, len(page.encode()) / 1e6)
