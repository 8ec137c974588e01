"""Implements the stage `run_sweep`, which runs the trials that the record lacks and then writes the outputs from the record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from raysweep.cluster.early_ends import folder_beside
from raysweep.cluster.launcher import Crew
from raysweep.cluster.lock import Lock
from raysweep.common.errors import ConfigError, logger
from raysweep.common.files import read_yaml, write_yaml
from raysweep.common.text import plural
from raysweep.data.manifest import read_manifest
from raysweep.record.budget import may_begin_trials
from raysweep.record.events import Provenance, WarmStart
from raysweep.record.file import read_sweep
from raysweep.record.identity import Identity
from raysweep.record.known_trials import path_to_known, write_known
from raysweep.record.outputs import write_outputs
from raysweep.record.published_model import write_loader
from raysweep.record.reopening import reopening_of
from raysweep.record.sweep import Sweep
from raysweep.stages.stage import Stage
from raysweep.stages.warm_start import read_source


def name_aside(state_dir: Path, identity: str) -> Path:
    """Return the path to which the state folder of a sweep can be renamed. The new name contains the start of `identity`, and nothing has this name yet."""
    number = 1
    while (target := state_dir.with_name(f"{state_dir.name}.before-{identity[:8]}{f'-{number}' if number > 1 else ''}")).exists():
        number += 1
    return target


def reason_to_start_anew(recorded: Sweep, identity: Identity, resume: bool) -> str | None:
    """Return why the recorded trials do not count any more, or None where the recorded trials count."""
    if not recorded.sessions:
        return None
    if change := identity.change_since(recorded.header):
        return change
    if recorded.trials and all(trial.status == "ERROR" for trial in recorded.trials.values()):
        return "all its trials failed"
    return None if resume else "resume is false"


def provenance_of(recorded: Sweep, identity: Identity) -> Provenance:
    """Return the workflow, environment and data with which the recorded sessions ran the trials.

    The environment that is installed now does not count, because the environment may have changed after the trials ran. The recorded identity is replaced
    where an earlier version has computed it from keys that have changed since and no longer count.
    """
    recorded_identity = recorded.header.provenance.identity
    same = recorded_identity if identity.is_identity(recorded_identity) else identity.sha256
    environments = [session.header.provenance.environment_sha256 for session in recorded.sessions]
    earlier = tuple(environment for environment in dict.fromkeys(environments) if environment != environments[-1])
    return replace(recorded.header.provenance, identity=same, earlier_environments=earlier)


def run_sweep(stage: Stage, path_to_config: Path) -> None:
    """Run the trials of a sweep that are left, and write the outputs of the sweep from the record.

    Raises RaysweepError when the sweep is not complete, when no trial can win, and when another run has locked the sweep.
    """
    with stage.lock() as lock:
        finish_sweep(stage, path_to_config, lock)


def finish_sweep(stage: Stage, path_to_config: Path, lock: Lock, crew: Crew | None = None) -> None:
    """Do the work of `run_sweep` for a process that has the lock. `crew` contains the nodes and agents of a job that other jobs can join."""
    recorded = _run_trials(stage, lock, crew)
    lock.verify()
    sweep = stage.sweep
    recorded.set_goal(sweep.constraint, sweep.objectives, sweep.choose)  # the keys may have changed since the trials ran
    best = write_outputs(stage.results_dir, stage.state_dir, recorded, stage.goal, provenance_of(recorded, stage.identity()))
    if stage.sweep.model and stage.data_dir and best.model_epoch is not None:
        write_loader(stage.results_dir / "model", stage.sweep, stage.code, read_manifest(stage.data_dir), best)
    write_yaml(stage.results_dir / "config.yaml", read_yaml(path_to_config))  # the keys keep the order of the user's config
    config = json.dumps(best.config)
    logger.info("%s: best %s %.4g, trial %s: %s", stage.name, best.metric.name, best.value, best.trial_id, config)


def _warm_start(stage: Stage, recorded: Sweep) -> WarmStart | None:
    """Read the known trials and write them for the driver, which cannot see every folder. Return their description, or None without `warm_start`.

    Raises ConfigError where the source is missing, cannot be read, or has no trial that fits the search space. But if an earlier run has stored the trials
    of this source, these trials count.
    """
    sweep, key = stage.sweep, f"sweeps.{stage.name}.warm_start"
    if sweep.warm_start is None:
        return None
    try:
        known = read_source(sweep.warm_start, sweep, stage.call.root)
    except ConfigError as error:
        before = recorded.header.warm_start
        if before is None or before.source != sweep.warm_start or not path_to_known(stage.state_dir).exists():
            raise ConfigError(f"{key}: {error}") from None
        logger.warning("%s: %s: %s. The trials that an earlier run has read are used again.", stage.name, key, error)
        return before
    write_known(known, stage.state_dir)
    header = known.header(sweep.mode)
    left_out = ""
    if known.num_left_out:
        others = plural(known.num_left_out, "other trial of the source is", "other trials of the source are")
        left_out = f" {others} left out, because of a missing value, a missing searched key, or a value outside of search_space."
    trials = plural(header.num_trials, "known trial")
    logger.info(
        "%s: the search algorithm gets %s of %s, best %s %.4g.%s", stage.name, trials, known.source, sweep.metric, header.best, left_out
    )
    return header


def _run_trials(stage: Stage, lock: Lock, crew: Crew | None) -> Sweep:
    """Run the trials that are left, and return the sweep from the record after the run."""
    identity = stage.identity()
    recorded = read_sweep(stage.path_to_record)
    if reason := reason_to_start_anew(recorded, identity, stage.sweep.resume):
        aside = name_aside(stage.state_dir, recorded.header.identity)
        stage.set_aside(aside)  # nothing is deleted
        lock.follow(aside)
        identity = stage.identity()
        logger.info("%s starts anew, since %s; the old state is kept in %s.", stage.name, reason, aside)
        recorded = Sweep()
    total = stage.sweep.num_trials
    if len(recorded.trials) > total:
        logger.info(
            "%s: the record holds %d trials, more than the %d asked for: all of them count.", stage.name, len(recorded.trials), total
        )
    recorded.set_goal(stage.sweep.constraint, stage.sweep.objectives, stage.sweep.choose)  # `end_when` decides by the present keys
    reopening = reopening_of(recorded, stage.state_dir, stage.sweep.max_epochs, stage.sweep.stop)
    is_over = recorded.is_complete(total, may_begin_trials(recorded, stage.sweep))
    if is_over and not reopening.trials:
        return recorded
    done = sum(trial.finished for trial in recorded.trials.values()) - len(reopening.trials)
    each = stage.sweep.repeats
    repeats = f" ({total // each} configurations, {each} {'folds' if stage.has_folds else 'times'} each)" if each > 1 else ""
    logger.info("%s: %d trials%s%s.", stage.name, total, repeats, f", {done} of them done before" if done else "")
    allocation = crew.allocation if crew else stage.allocation()
    if allocation.job_id is None and stage.sweep.allocation.jobs > 1:
        logger.info("%s: allocation.jobs is ignored on this machine, where the sweep has no job.", stage.name)
    header = stage.header(identity.sha256, max(total, len(recorded.trials)), stage.sweep.max_epochs, stage.sweep.repeats)
    header = replace(header, depends_on=identity.parts, warm_start=_warm_start(stage, recorded))
    job = stage.search_job(stage.path_to_record, header, allocation)
    stage.run_agents(job if crew is None else replace(job, early_ends=folder_beside(crew.gate_path)), allocation, crew)
    return read_sweep(stage.path_to_record)
