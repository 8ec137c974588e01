"""The outputs of a sweep, rendered from its record: `trials.csv`, `best.yaml`, `model/`, `confirmed.yaml`."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from raysweep.common.bounds import all_hold
from raysweep.common.errors import RaysweepError
from raysweep.common.files import replace_directory, write_yaml, written_aside
from raysweep.common.typed_json import to_json
from raysweep.config.model import Mode
from raysweep.config.space import flattened
from raysweep.record.events import Provenance
from raysweep.record.trials import Candidate, Result, Sweep, Trial

NO_CHECKPOINT = "The trainable reported no checkpoint (`tune.report(…, checkpoint=…)`), so there is no model to keep.\n"
NOT_KEPT = (
    "This trial has become the best one afterwards, by another constraint; its checkpoints had been deleted by then (keep_checkpoints).\n"
)


def write_trials(path: Path, sweep: Sweep, metric: str, mode: Mode) -> None:
    """A row a trial, in the order of their ids. A value that is a list or a map stands in its column as JSON."""
    trials = sorted(sweep.trials.values(), key=lambda trial: trial.trial_id)
    keys = list(dict.fromkeys(key for trial in trials for key in flattened(trial.config)))
    with written_aside(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        config_columns = [f"config/{key}" for key in keys]
        last_columns = ["epoch_of_metric", "epochs", "time_s", "node", "started", "ended", "error"]
        writer.writerow(["trial_id", "status", *config_columns, "seed", "repeat", metric, *last_columns])
        for trial in trials:
            config = flattened(trial.config)
            best = trial.best(metric, mode)
            value = [best.metrics[metric], best.epoch] if best else ["", ""]
            cells = [_cell(config.get(key)) for key in keys]
            last = [trial.epochs, trial.time_s, trial.node, trial.started, trial.ended, trial.error]
            writer.writerow([trial.trial_id, trial.status, *cells, trial.seed, trial.repeat, *value, *last])


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict | bool) else value


def write_outputs(results_dir: Path, state_dir: Path, sweep: Sweep, name: str, metric: str, mode: Mode, provenance: Provenance) -> None:
    """Write `trials.csv`, `model/` and `best.yaml`. Raises RaysweepError when no trial succeeded."""
    write_trials(results_dir / "trials.csv", sweep, metric, mode)
    found = sweep.best_trial(metric, mode)
    if found is None:
        reasons = [trial.error for trial in sweep.trials.values() if trial.error]
        common = statistics.mode(reasons) if reasons else "none was run"
        # Snakemake deletes the outputs of a rule that failed, so the reasons are kept elsewhere too.
        write_trials(state_dir / "trials.csv", sweep, metric, mode)
        if sweep.constraint and len(reasons) < len(sweep.trials):
            bounds = ", ".join(f"{key}: {bound}" for key, bound in sweep.constraint.items())
            raise RaysweepError(
                f"{name}: no trial without an error has a report within the constraint ({bounds}). All are in {state_dir / 'trials.csv'}. Loosen"
                f" sweeps.{name}.constraint and run again: no trial is lost"
            )
        if len(reasons) < len(sweep.trials):
            raise RaysweepError(
                f"{name}: no configuration has {sweep.repeats} trials without an error, {len(reasons)} of {len(sweep.trials)} trials failed,"
                f" {reasons.count(common)} of them so: {common}. All are in {state_dir / 'trials.csv'}. Mend it, or give the sweep more time, and run again"
            )
        raise RaysweepError(
            f"{name}: all {len(sweep.trials)} trials failed, {reasons.count(common)} of them so: {common}. All reasons are in"
            f" {state_dir / 'trials.csv'}. Mend it and run again: the sweep then starts anew"
        )
    candidate, result = found
    model_epoch = write_model(results_dir / "model", state_dir, best_member(candidate, result, metric, mode), result.epoch)
    write_yaml(results_dir / "best.yaml", best_of(sweep, name, metric, mode, provenance) | {"model_epoch": model_epoch})


def best_of(sweep: Sweep, name: str, metric: str, mode: Mode, provenance: Provenance) -> dict[str, Any]:
    """What `best.yaml` says. Raises ValueError where no trial has reported a value yet."""
    found = sweep.best_trial(metric, mode)
    if found is None:
        raise ValueError(f"{name} has no best trial")
    candidate, result = found
    values = values_at(candidate, result, metric)
    repeats = {"n": len(values), "values": values, "standard_deviation": statistics.stdev(values)} if len(values) > 1 else None
    return {
        "sweep": name,
        "trial_id": best_member(candidate, result, metric, mode).trial_id,
        "config": candidate.config,
        "metric": {"name": metric, "mode": mode, "value": result.metrics[metric]},
        **({"schedule": to_json(candidate.schedule)} if isinstance(candidate, Trial) and candidate.schedule else {}),
        **({"repeats": repeats} if repeats else {}),
        **({"constraint": sweep.constraint} if sweep.constraint else {}),
        "epochs": result.epoch,
        "num_trials": len(sweep.trials),
        "num_errors": sum(t.status == "ERROR" for t in sweep.trials.values()),
        "provenance": to_json(provenance),
    }


def values_at(candidate: Candidate, result: Result, metric: str) -> list[float]:
    """What the trials of one configuration reported at the epoch of a result, of which that is the mean."""
    return [report.metrics[metric] for trial in candidate.members for report in trial.results if report.epoch == result.epoch]


def best_member(candidate: Candidate, result: Result, metric: str, mode: Mode) -> Trial:
    """Of the trials of one configuration the best at that epoch, whose model is published."""
    reports = [(trial, report) for trial in candidate.members for report in trial.results if report.epoch == result.epoch]
    # The mean may be within bounds that one of them is not.
    reports = [(trial, report) for trial, report in reports if all_hold(report.metrics, candidate.constraint)] or reports
    return (max if mode == "max" else min)(reports, key=lambda one: one[1].metrics[metric])[0]


class PartialOutputs:
    """`trials.csv` and `best.yaml` of a sweep that is not complete, in its state folder, where they can be read at any time."""

    INTERVAL_S = 10.0
    MOST_OF_TIME = 0.02  # that writing them may take

    def __init__(self, state_dir: Path, name: str, metric: str, mode: Mode, provenance: Provenance) -> None:
        self.state_dir, self.name, self.metric, self.mode, self.provenance = state_dir, name, metric, mode, provenance
        self.next = 0.0

    def write_now_and_then(self, sweep: Sweep) -> None:
        """Write them, unless that was done a short while ago."""
        began = time.monotonic()
        if began >= self.next and sweep.trials:
            self.write(sweep)
            self.next = began + max(self.INTERVAL_S, (time.monotonic() - began) / self.MOST_OF_TIME)

    def write(self, sweep: Sweep) -> None:
        write_trials(self.state_dir / "trials.csv", sweep, self.metric, self.mode)
        if sweep.best_trial(self.metric, self.mode):
            write_yaml(self.state_dir / "best.yaml", best_of(sweep, self.name, self.metric, self.mode, self.provenance))


def write_model(model_dir: Path, state_dir: Path, trial: Trial, epoch: int) -> int | None:
    """Publish the checkpoint of the best epoch, or, when the trainable made none then, its latest; returns its epoch."""
    there = {e: state_dir / path for e, path in trial.checkpoints.items() if (state_dir / path).is_dir()}
    if not there:
        shutil.rmtree(model_dir, ignore_errors=True)
        with written_aside(model_dir / "README.txt") as stream:
            stream.write(NOT_KEPT if trial.checkpoints else NO_CHECKPOINT)
        return None
    chosen = epoch if epoch in there else max(there)
    replace_directory(there[chosen], model_dir)
    (model_dir / "training_state.pt").unlink(missing_ok=True)  # of the workflow's own training: for going on, not for using the model
    return chosen


def write_confirmed(
    path: Path, sweep: Sweep, name: str, metric: str, mode: Mode, config: dict[str, Any], epochs: int, evaluated_on: str, note: str
) -> None:
    """Write what training anew with other seeds gave: each seed's value, mean, sample standard deviation, n; and the published model's own."""
    runs = [trial for trial in sweep.trials.values() if trial.trial_id != "published"]
    values = {trial.trial_id: trial.results[-1].metrics.get(metric) for trial in runs if trial.results and trial.status != "ERROR"}
    usable = [value for value in values.values() if value is not None]
    if not usable:
        raise RaysweepError(f"{name}: none of the {len(runs)} confirmations succeeded: {runs[0].error}. Mend it and run again")
    published = sweep.trials.get("published")
    write_yaml(
        path,
        {
            "sweep": name,
            "metric": {"name": metric, "mode": mode},
            "config": config,
            "epochs": epochs,
            "evaluated_on": evaluated_on,
            "note": note,
            "seeds": [{"seed": trial.seed, "value": values.get(trial.trial_id), "error": trial.error} for trial in runs],
            "n": len(usable),
            "mean": statistics.fmean(usable),
            "standard_deviation": statistics.stdev(usable) if len(usable) > 1 else None,
            "published_model": published.results[-1].metrics if published and published.results else None,
            **({"published_model_error": published.error} if published and published.error else {}),
        },
    )
