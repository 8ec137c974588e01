"""Writes `trials.csv`, `best.yaml` and `model/` from the record of a sweep, and computes the content of `confirmed.yaml`."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysweep.common.bounds import all_hold
from raysweep.common.errors import RaysweepError
from raysweep.common.files import replace_directory, write_yaml, written_aside
from raysweep.common.numeric import is_same
from raysweep.common.typed_json import to_json
from raysweep.config.model import Mode
from raysweep.config.space import flattened
from raysweep.record.events import Provenance
from raysweep.record.results import (
    BestMetric,
    BestResult,
    Confirmation,
    ConfirmedMean,
    ConfirmedMetric,
    ConfirmedSeed,
    EvaluatedOn,
    FrontPoint,
    Goal,
    Repeats,
)
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Candidate, Result, Trial

PUBLISHED = "published"  # trial_id of the confirmation's trial that only evaluates the published model and trains nothing
NO_CHECKPOINT = "The trainable reported no checkpoint (`tune.report(…, checkpoint=…)`), so there is no model to keep.\n"
NOT_KEPT = (
    "This trial has become the best one afterwards, by another constraint; its checkpoints had been deleted by then (keep_checkpoints).\n"
)


def write_trials(path: Path, sweep: Sweep, metric: str, mode: Mode) -> None:
    """Write a CSV file with one row for each trial, in the order of the trial ids. Lists, maps and booleans are written as JSON."""
    trials = sorted(sweep.trials.values(), key=lambda trial: trial.trial_id)
    keys = list(dict.fromkeys(key for trial in trials for key in flattened(trial.config)))
    metrics = [objective.metric for objective in sweep.objectives] or [metric]
    on_front = {member.trial_id for candidate, _ in sweep.front() for member in candidate.members}
    with written_aside(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        config_columns = [f"config/{key}" for key in keys]
        last_columns = ["epoch_of_metric", "epochs", "time_s", "node", "started", "ended", "error"]
        last_columns += ["pareto"] if sweep.objectives else []
        writer.writerow(["trial_id", "status", *config_columns, "seed", "repeat", *metrics, *last_columns])
        for trial in trials:
            config = flattened(trial.config)
            best = trial.best(metric, mode)
            values = [*(best.metrics[name] for name in metrics), best.epoch] if best else [""] * (len(metrics) + 1)
            cells = [_cell(config.get(key)) for key in keys]
            last = [trial.epochs, trial.time_s, trial.node, trial.started, trial.ended, trial.error]
            last += [_cell(trial.trial_id in on_front)] if sweep.objectives else []
            writer.writerow([trial.trial_id, trial.status, *cells, trial.seed, trial.repeat, *values, *last])


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict | bool) else value


def write_outputs(results_dir: Path, state_dir: Path, sweep: Sweep, goal: Goal, provenance: Provenance) -> BestResult:
    """Write `trials.csv`, `model/` and `best.yaml`, and return the content of `best.yaml`. Raises RaysweepError when no trial succeeded."""
    write_trials(results_dir / "trials.csv", sweep, goal.metric, goal.mode)
    winner = sweep.best_trial(goal.metric, goal.mode)
    if winner is None:
        # Snakemake deletes the outputs of a rule that failed. A second file in the state folder keeps the errors of the trials for the user.
        write_trials(state_dir / "trials.csv", sweep, goal.metric, goal.mode)
        raise RaysweepError(reason_for_no_best(sweep, goal.name, state_dir / "trials.csv"))
    candidate, result = winner
    member = best_member(sweep, candidate, result, goal)
    model_epoch = candidate.best_epoch(goal.metric, goal.mode, member.existing_checkpoints(state_dir))
    write_model(results_dir / "model", state_dir, member, model_epoch)
    best = replace(best_of(sweep, goal, provenance), model_epoch=model_epoch)
    write_yaml(results_dir / "best.yaml", to_json(best))
    return best


def reason_for_no_best(sweep: Sweep, name: str, path_to_trials: Path) -> str:
    """Return a message that says why a sweep has no best trial and what the user can do."""
    reasons = [trial.error for trial in sweep.trials.values() if trial.error]
    common = statistics.mode(reasons) if reasons else "none was run"
    for metric in (objective.metric for objective in sweep.objectives):
        if len(reasons) < len(sweep.trials) and not any(trial.has_reported(metric) for trial in sweep.trials.values()):
            return (
                f"{name}: no trial has reported {metric}, which is one of sweeps.{name}.objectives. Take it out of the objectives, or write"
                " resume: false, which starts the sweep anew"
            )
    if sweep.constraint and len(reasons) < len(sweep.trials):
        bounds = ", ".join(f"{key}: {bound}" for key, bound in sweep.constraint.items())
        return (
            f"{name}: no trial without an error has a report within the constraint ({bounds}). All are in {path_to_trials}. Loosen"
            f" sweeps.{name}.constraint and run again: no trial is lost"
        )
    if len(reasons) < len(sweep.trials):
        return (
            f"{name}: no configuration has {sweep.repeats} trials without an error, {len(reasons)} of {len(sweep.trials)} trials failed,"
            f" {reasons.count(common)} of them so: {common}. All are in {path_to_trials}. Mend it, or give the sweep more time, and run again"
        )
    return (
        f"{name}: all {len(sweep.trials)} trials failed, {reasons.count(common)} of them so: {common}. All reasons are in"
        f" {path_to_trials}. Mend it and run again: the sweep then starts anew"
    )


def best_of(sweep: Sweep, goal: Goal, provenance: Provenance) -> BestResult:
    """Return the content of `best.yaml` for the winner of a sweep. Raises ValueError where no trial can win yet."""
    winner = sweep.best_trial(goal.metric, goal.mode)
    if winner is None:
        raise ValueError(f"{goal.name} has no best trial")
    return _described(sweep, *winner, goal, provenance)


def next_best(sweep: Sweep, goal: Goal, best: BestResult, count: int) -> list[BestResult]:
    """Return at most `count` configurations that come after the winner `best`, best first. A configuration that was tried twice is listed once."""
    found: list[BestResult] = []
    for candidate in sorted(sweep.candidates, key=lambda candidate: candidate.rank(goal.metric, goal.mode)):
        result = candidate.counted(goal.metric, goal.mode)
        if len(found) == count or result is None:
            break
        if not any(is_same(candidate.config, other.config) for other in (best, *found)):
            found.append(_described(sweep, candidate, result, goal, best.provenance))
    return found


def _described(sweep: Sweep, candidate: Candidate, result: Result, goal: Goal, provenance: Provenance) -> BestResult:
    """Return what `best.yaml` would contain if `candidate` were the winner with its report `result`."""
    return BestResult(
        sweep=goal.name,
        trial_id=best_member(sweep, candidate, result, goal).trial_id,
        config=candidate.config,
        metric=BestMetric(goal.metric, goal.mode, result.metrics[goal.metric]),
        schedule=tuple(candidate.schedule) if isinstance(candidate, Trial) else (),
        repeats=Repeats.of(values_at(candidate, result, goal.metric)),
        constraint=sweep.constraint,
        objectives=sweep.objectives,
        choose=sweep.choose,
        front=tuple(_front_point(sweep, *point, goal) for point in sweep.front()),
        epochs=result.epoch,
        num_trials=len(sweep.trials),
        num_errors=sum(t.status == "ERROR" for t in sweep.trials.values()),
        provenance=provenance,
    )


def _front_point(sweep: Sweep, candidate: Candidate, result: Result, goal: Goal) -> FrontPoint:
    metrics = {objective.metric: result.metrics[objective.metric] for objective in sweep.objectives}
    return FrontPoint(best_member(sweep, candidate, result, goal).trial_id, candidate.config, result.epoch, metrics)


def values_at(candidate: Candidate, result: Result, metric: str) -> list[float]:
    """Return the values of `metric` that the trials of a candidate reported at the epoch of `result`. `result` is the mean of these reports."""
    return [report.metrics[metric] for trial in candidate.members for report in trial.results if report.epoch == result.epoch]


def best_member(sweep: Sweep, candidate: Candidate, result: Result, goal: Goal) -> Trial:
    """Return the trial of a candidate that has the best value at the epoch of `result`. The model of this trial is published.

    Where the trials of a candidate train on folds, return the trial of fold 0, because the values of folds are measured on different rows.
    """
    if sweep.header.has_folds:
        return candidate.members[0]
    reports = [(trial, report) for trial in candidate.members for report in trial.results if report.epoch == result.epoch]
    # The mean of the trials may fulfil bounds that the report of one trial does not fulfil.
    reports = [(trial, report) for trial, report in reports if all_hold(report.metrics, candidate.constraint)] or reports
    return (max if goal.mode == "max" else min)(reports, key=lambda pair: pair[1].metrics[goal.metric])[0]


class PartialOutputs:
    """Writes `trials.csv` and `best.yaml` of an incomplete sweep into the sweep's state folder, where the user can read the files at any time."""

    INTERVAL_S = 10.0  # shortest time between two writes, in seconds
    MAX_SHARE_OF_TIME = 0.02  # largest share of the driver's time that the writes may use

    def __init__(self, state_dir: Path, goal: Goal, provenance: Provenance) -> None:
        self.state_dir, self.goal, self.provenance = state_dir, goal, provenance
        self.next_at_s = 0.0

    def write_now_and_then(self, sweep: Sweep) -> None:
        """Write the files, unless the last write was less than INTERVAL_S seconds ago or writing would use too much time."""
        began = time.monotonic()
        if began >= self.next_at_s and sweep.trials:
            self.write(sweep)
            self.next_at_s = began + max(self.INTERVAL_S, (time.monotonic() - began) / self.MAX_SHARE_OF_TIME)

    def write(self, sweep: Sweep) -> None:
        """Write the files. `best.yaml` has no key `model_epoch`, because no model is published yet."""
        write_trials(self.state_dir / "trials.csv", sweep, self.goal.metric, self.goal.mode)
        if sweep.best_trial(self.goal.metric, self.goal.mode):
            best = to_json(best_of(sweep, self.goal, self.provenance))
            write_yaml(self.state_dir / "best.yaml", {key: value for key, value in best.items() if key != "model_epoch"})


def write_model(model_dir: Path, state_dir: Path, trial: Trial, epoch: int | None) -> None:
    """Publish the checkpoint of a trial after `epoch`. Where `epoch` is None, write a text that says why there is no model."""
    if epoch is None:
        shutil.rmtree(model_dir, ignore_errors=True)
        with written_aside(model_dir / "README.txt") as stream:
            stream.write(NOT_KEPT if trial.checkpoints else NO_CHECKPOINT)
        return
    replace_directory(state_dir / trial.checkpoints[epoch], model_dir)
    # Only a trial that continues needs the file training_state.pt. A user of the model does not need the file.
    (model_dir / "training_state.pt").unlink(missing_ok=True)


def confirmation_of(confirmed: Sweep, goal: Goal, best: BestResult, evaluated_on: EvaluatedOn, note: str) -> Confirmation:
    """Return the content of `confirmed.yaml` from the trials that trained the best configuration anew.

    The content includes the value of each seed, the mean and the sample standard deviation of the values, and the number n of the values.
    If the training failed with every seed, n is 0 and the mean is None.
    """
    runs = [trial for trial in confirmed.trials.values() if trial.trial_id != PUBLISHED]
    seeds = tuple(_confirmed_seed(trial, goal.metric) for trial in runs)
    usable = [seed.value for seed in seeds if seed.value is not None]
    published = confirmed.trials.get(PUBLISHED)
    return Confirmation(
        sweep=goal.name,
        metric=ConfirmedMetric(goal.metric, goal.mode),
        config=best.config,
        epochs=best.epochs,
        evaluated_on=evaluated_on,
        note=note,
        seeds=seeds,
        n=len(usable),
        mean=statistics.fmean(usable) if usable else None,
        standard_deviation=statistics.stdev(usable) if len(usable) > 1 else None,
        published_model=published.results[-1].metrics if published and published.results else None,
        published_model_error=published.error if published else None,
    )


def confirmed_means(confirmed: Sweep, names: Iterable[str]) -> dict[str, ConfirmedMean]:
    """Return the means of the metrics `names` over the seeds of a confirmation. A metric that no seed has reported is left out."""
    runs = [trial for trial in confirmed.trials.values() if trial.trial_id != PUBLISHED and trial.results and trial.status != "ERROR"]
    values = {name: [trial.results[-1].metrics[name] for trial in runs if name in trial.results[-1].metrics] for name in names}
    return {
        name: ConfirmedMean(statistics.fmean(each), statistics.stdev(each) if len(each) > 1 else None)
        for name, each in values.items()
        if each
    }


def _confirmed_seed(trial: Trial, metric: str) -> ConfirmedSeed:
    value = trial.results[-1].metrics.get(metric) if trial.results and trial.status != "ERROR" else None
    no_value = None if value is not None else f"no {metric} was reported"
    return ConfirmedSeed(trial.seed, value, trial.error or no_value)
