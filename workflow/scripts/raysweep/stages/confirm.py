"""Implements the stage `confirm`, which trains the best configurations anew with other seeds and evaluates the trained models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raysweep.cluster.job import ConfirmTask
from raysweep.common.errors import RaysweepError, logger
from raysweep.common.files import write_yaml
from raysweep.common.seeds import confirm_seeds
from raysweep.common.text import plural
from raysweep.common.typed_json import read_yaml_as, to_json
from raysweep.record.events import ScheduleStep
from raysweep.record.file import read_sweep
from raysweep.record.outputs import PUBLISHED, confirmation_of, confirmed_means, next_best
from raysweep.record.results import PREDICTIONS, BestResult, Confirmation, EvaluatedOn, Predictions
from raysweep.stages.stage import RECORD, Stage
from raysweep.usercode.target import defined_names_of

ON_TEST = "trained on all training data, evaluated on the test set"
ON_VALIDATION = "repeated on validation, not a test result (the trainable's file defines no confirm(config, seed, epochs))"


@dataclass(frozen=True)
class Method:
    """Describes how the best configuration is trained anew."""

    config: dict[str, Any]  # configuration with which training begins
    # The configurations that training uses one after the other. The tuple is empty where the configuration does not change.
    schedule: tuple[ScheduleStep, ...]
    evaluated_on: EvaluatedOn
    note: str


def run_confirm(stage: Stage) -> None:
    """Train the best configuration anew on all training data with seeds that no trial used, and evaluate the trained models on the test set.

    With `confirm.top`, the next best configurations are trained in the same way with the same seeds, one after the other, each with a record of its own. So
    a change of `top` trains no configuration again. The winner stays the configuration that validation chose, also if another one is better here.

    No other stage opens the test set. A trainable without a function `confirm` is evaluated on the validation data instead.
    A training that fails does not fail the stage, because the report of the sweep is worth having without the confirmation.
    """
    with stage.lock():
        best = BestResult.read(stage.results_dir / "best.yaml")
        if not stage.identity().is_identity(best.provenance.identity):
            raise RaysweepError(
                f"{stage.name}: what its trials depend on has changed since they ran (a file of yours that was edited meanwhile?), so there is nothing to"
                " confirm. Undo that, or run the same command again, which starts the sweep anew"
            )
        winner = _confirm(stage, best)
        others = _next_best(stage, best)
        entries = tuple(_confirm(stage, other).as_other(other, winner, len(others)) for other in others)
        confirmation = replace(winner, others=entries)
        write_yaml(stage.results_dir / "confirmed.yaml", to_json(confirmation))
    _log(stage, confirmation)


def _next_best(stage: Stage, best: BestResult) -> list[BestResult]:
    """Return the configurations that `confirm.top` confirms after the winner."""
    count = stage.sweep.confirm.top - 1
    if not count:
        return []
    recorded = read_sweep(stage.path_to_record)
    recorded.set_goal(stage.sweep.constraint, stage.sweep.objectives, stage.sweep.choose)
    others = next_best(recorded, stage.goal, best, count)
    if len(others) < count:
        logger.info("%s: confirm.top is %d, but only %d configurations have a value.", stage.name, count + 1, len(others) + 1)
    return others


def _confirm(stage: Stage, best: BestResult) -> Confirmation:
    """Train one configuration anew with each seed, unless an earlier run has done this, and return the result."""
    method = method_of(stage, best)
    path_to_record = _run_tasks(stage, best, method)
    confirmed, path_to_predictions = read_sweep(path_to_record), path_to_record.with_name(PREDICTIONS)
    return replace(
        confirmation_of(confirmed, stage.goal, best, method.evaluated_on, method.note),
        metrics=confirmed_means(confirmed, [*stage.sweep.compared_metrics[1:], *stage.sweep.metrics]),
        # Version 0.2 and earlier versions wrote no predictions.
        predictions=read_yaml_as(Predictions, path_to_predictions) if path_to_predictions.exists() else None,
    )


def method_of(stage: Stage, best: BestResult) -> Method:
    """Return how the best configuration is trained anew.

    The winner of a population has a schedule of configurations. The training follows the schedule, unless the trainable has a function `confirm`.
    """
    is_model = stage.sweep.model is not None
    has_confirm = not is_model and "confirm" in defined_names_of(stage.code.target.path)
    on: EvaluatedOn = "test" if is_model or has_confirm else "validation"
    note = ON_TEST if on == "test" else ON_VALIDATION
    if on == "validation" and stage.has_folds:
        note += "; on fold 0"
    if not best.schedule:
        return Method(best.config, (), on, note)
    if has_confirm:
        note += "; with the last configuration throughout, not with the schedule by which it came about"
        return Method(best.config, (), on, note)
    # The workflow's own training of a model follows the schedule without a restart. A trainable begins with the first configuration, and is restarted
    # for each later configuration.
    config = best.config if is_model else best.schedule[0].config
    return Method(config, best.schedule, on, f"{note}; its settings changed at the same epochs")


def tasks_of(stage: Stage, best: BestResult, method: Method) -> list[ConfirmTask]:
    """Return the trials of the confirmation: a trial for each new seed, and a trial that evaluates the published model if there is a model."""
    sweep, recorded = stage.sweep, read_sweep(stage.path_to_record)
    seeds = confirm_seeds(sweep.seed, sweep.confirm.seeds, {trial.seed for trial in recorded.trials.values()})
    tasks = [
        ConfirmTask(f"confirm-{number}", seed, "confirm" if method.evaluated_on == "test" else "search", method.config)
        for number, seed in enumerate(seeds, start=1)
    ]
    if sweep.model is not None and best.model_epoch is not None:
        tasks.append(ConfirmTask(PUBLISHED, seeds[0], "evaluate", best.config))
    return tasks


def identity_of(best: BestResult, tasks: Sequence[ConfirmTask], schedule: Sequence[ScheduleStep], metrics: Sequence[str] = ()) -> str:
    """Return a checksum of everything on which the result of a confirmation depends.

    The folder of the confirmation has this checksum in its name, so that the records of two different winners never mix.
    """
    parts = [
        best.provenance.identity,
        best.epochs,
        best.trial_id,
        to_json(tasks),
        *to_json(schedule),
        *([list(metrics)] if metrics else []),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _run_tasks(stage: Stage, best: BestResult, method: Method) -> Path:
    """Run the trials of the confirmation, unless an earlier run has trained all trials without an error, and return the path of their record."""
    tasks = tasks_of(stage, best, method)
    identity = identity_of(best, tasks, method.schedule, stage.sweep.metrics)
    path_to_record = stage.state_dir / f"confirm-{identity[:12]}" / RECORD
    confirmed = read_sweep(path_to_record)
    if confirmed.is_complete(len(tasks)) and all(trial.status != "ERROR" for trial in confirmed.trials.values()):
        return path_to_record
    num_seeds = stage.sweep.confirm.seeds
    which = "the best configuration" if stage.sweep.confirm.top == 1 else f"the configuration of trial {best.trial_id}"
    logger.info("%s: training %s anew with %s, %s each.", stage.name, which, plural(num_seeds, "seed"), plural(best.epochs, "epoch"))
    allocation = stage.allocation()
    header = stage.header(identity, len(tasks), best.epochs)
    stage.run_agents(stage.confirm_job(path_to_record, header, allocation, tasks, method.schedule), allocation)
    return path_to_record


def _log(stage: Stage, confirmation: Confirmation) -> None:
    seeds = [*confirmation.seeds, *(seed for other in confirmation.others for seed in other.seeds)]
    failed = [seed for seed in seeds if seed.value is None]
    if failed:
        logger.warning(
            "%s: %d of the %d confirmations failed: %s. Correct the fault, and add `-R confirm` to the same command to train the confirmation again.",
            stage.name,
            len(failed),
            len(seeds),
            failed[0].error,
        )
    if confirmation.mean is None:
        return
    deviation = confirmation.standard_deviation
    spread = f" ± {deviation:.2g}" if deviation is not None else ""
    metric, on = stage.sweep.metric, confirmation.evaluated_on
    logger.info("%s: %s on %s %.4g%s (n = %d).", stage.name, metric, on, confirmation.mean, spread, confirmation.n)
    for other in confirmation.others:
        logger.info("%s: %s", stage.name, other.sentence(stage.sweep.mode))
