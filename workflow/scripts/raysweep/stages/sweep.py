"""The stages `run_sweep` and `confirm`: what is left to do is worked out from the record, done by the agents, and rendered."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysweep import __version__
from raysweep.cluster import launcher
from raysweep.cluster.job import ConfirmJob, ConfirmTask, SearchJob, Walltime
from raysweep.cluster.launcher import LaunchRequest
from raysweep.cluster.lock import DRIVER_LOCK, Lock
from raysweep.common.errors import BUG, START_AGAIN, RaysweepError, WorldError, set_up_logging
from raysweep.common.files import read_yaml, sha256_of_file, write_yaml
from raysweep.common.seeds import confirm_seeds
from raysweep.common.typed_json import from_json, to_json
from raysweep.config.model import Config, read_config
from raysweep.data.manifest import read_manifest
from raysweep.environment.archive import pack
from raysweep.environment.manifest import Environment
from raysweep.environment.requirements import lock_of
from raysweep.record.events import Provenance, ScheduleStep, SessionHeader
from raysweep.record.file import read_sweep
from raysweep.record.identity import sweep_identity
from raysweep.record.outputs import write_confirmed, write_outputs
from raysweep.record.trials import Sweep
from raysweep.slurm.allocation import Allocation, SlurmJob, trial_resources
from raysweep.usercode.freeze import Code
from raysweep.usercode.target import defined_names_of, find_target

logger = logging.getLogger("raysweep")
RECORD = "record.jsonl"


class Stage:
    """A sweep of a validated config, in its folders. `config` holds the one sweep `name`; relative paths start at `root`."""

    def __init__(
        self, config: Config, name: str, root: Path, env_dir: Path, path_to_log: Path, *, in_slurm: bool = False, threads: int = 1
    ) -> None:
        self.config, self.name, self.root, self.env_dir, self.path_to_log = config, name, root, env_dir, path_to_log
        self.in_slurm, self.threads = in_slurm, threads
        self.sweep = config.sweeps[name]
        self.results_dir = root / config.results_dir / name
        self.state_dir = root / config.state_dir / name
        self.data_dir = root / config.resources_dir / "data" / self.sweep.dataset if self.sweep.dataset else None
        self.environment = Environment.load(env_dir)
        self.code = Code.read(find_target(self.sweep.target, root))
        self.data_sha256 = None
        if self.data_dir:
            manifest = read_manifest(self.data_dir)
            assert self.sweep.dataset is not None
            manifest.check_spec(self.data_dir, config.datasets[self.sweep.dataset])
            self.data_sha256 = manifest.data_sha256

    def identity(self) -> str:
        """Return the identity of the sweep: all that a finished trial depends on. Any other key of the config can change, and the sweep goes on."""
        env = self.config.env
        # The lock says what is installed, but for wheels that the site or the user chose.
        locked = env.wheels not in ("site", "none")
        lock = sha256_of_file(lock_of(self.root / env.requirements)) if locked else self.environment.environment_sha256
        return sweep_identity(to_json(self.sweep), sources=self.code.sha256(), data=self.data_sha256, lock=lock)

    def header(self, identity: str, total: int, max_epochs: int, repeats: int = 1) -> SessionHeader:
        """Return the header of a session, for the report and `make watch`."""
        sweep = self.sweep
        return SessionHeader(
            name=self.name,
            identity=identity,
            num_trials=total,
            max_epochs=max_epochs,
            repeats=repeats,
            metric=sweep.metric,
            mode=sweep.mode,
            seed=sweep.seed,
            search_space=sweep.search_space,
            search_algorithm=sweep.search_algorithm,
            scheduler=sweep.scheduler,
            dataset=sweep.dataset,
            model=sweep.model,
            trainable=sweep.trainable,
            optimizer=sweep.optimizer,
            loss=sweep.loss,
            trial_resources=sweep.trial_resources,
            constraint=sweep.constraint,
            version=__version__,
            provenance=Provenance(__version__, identity, self.environment.environment_sha256, self.data_sha256),
        )

    def search_job(self, record: Path, header: SessionHeader, allocation: Allocation) -> SearchJob:
        """Return the job of a driver that runs what is left of the sweep."""
        base = self._job(record, header, allocation)
        return SearchJob(**base, packs_gpus=self.sweep.trial_resources.gpu == "auto" and base["trial_resources"].gpu > 0)

    def confirm_job(
        self, record: Path, header: SessionHeader, allocation: Allocation, tasks: Sequence[ConfirmTask], schedule: Sequence[ScheduleStep]
    ) -> ConfirmJob:
        """Return the job of a driver that trains the best configuration anew."""
        base = self._job(record, header, allocation)
        return ConfirmJob(**base, tasks=tuple(tasks), schedule=tuple(schedule), model_dir=self.results_dir / "model")

    def _job(self, record: Path, header: SessionHeader, allocation: Allocation) -> dict[str, Any]:
        """Return the fields of TuneJob."""
        return {
            "name": self.name,
            "sweep": self.sweep,
            "header": header,
            "code": self.code,
            "root": self.root,
            "record": record,
            "data_dir": self.data_dir,
            "max_epochs": header.max_epochs,
            "total": header.num_trials,
            "trial_resources": trial_resources(self.sweep, allocation),
            "slurm_job": allocation.slurm_job,
            "walltime": Walltime(allocation.started, allocation.ends, self.sweep.allocation.walltime_margin_s),
        }

    def allocation(self) -> Allocation:
        """What this run may use: what Slurm gave to its job, or what there is of this machine."""
        return Allocation.of_slurm() if self.in_slurm else Allocation.local(self.sweep.allocation, self.threads)

    def lock(self) -> Lock:
        """What keeps a second run of the sweep away."""
        return Lock(self.state_dir, f"sweep {self.name}", job=SlurmJob.current() if self.in_slurm else None)

    def run_agents(self, job: SearchJob | ConfirmJob, allocation: Allocation) -> None:
        """Do the job. Exits as the driver did where that has said why; raises RaysweepError where it could not."""
        # That of a driver which is dead goes here: Slurm's commands may not be on the PATH that the modules leave to the driver.
        with Lock(job.state_dir, f"sweep {self.name}", DRIVER_LOCK):
            pass
        if self.in_slurm:
            pack(self.env_dir)  # done before, but where the environment was built for a run on that machine alone
        cache_dir = self.config.env.cache_dir
        request = LaunchRequest(
            allocation,
            self.env_dir,
            self.path_to_log,
            min_nodes=self.sweep.allocation.min_nodes,
            has_dashboard=self.config.ray.dashboard,
            cache_dir=Path(cache_dir) if cache_dir else None,
        )
        code = launcher.run(request, job).exit_code
        if code == START_AGAIN:
            try:
                allocation.start_again()
            except WorldError as error:
                raise WorldError(f"{self.name}: incomplete, resumable: {error}. Run the same command again") from None
        if code < 0:
            raise RaysweepError(
                f"{self.name}: the driver was killed (signal {-code}): see {self.path_to_log}. Run the same command again to go on"
            )
        if code in (1, BUG, 130):
            sys.exit(code)  # the driver has said why, see run_entry_point
        if code:
            raise RaysweepError(f"{self.name}: the driver ended with exit code {code}: see {self.path_to_log}")


def stage_from_command_line(description: str | None) -> Stage:
    """The stage that an entry point was called for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--sweep", required=True, help="name of the sweep")
    parser.add_argument("--config", type=Path, required=True, help="YAML file with the validated config of this sweep")
    parser.add_argument("--env-dir", type=Path, required=True, help="folder of the node environment")
    parser.add_argument(
        "--allocation", choices=["local", "slurm"], required=True, help="this machine, or the job of Slurm that this runs in"
    )
    parser.add_argument("--threads", type=int, required=True, help="CPUs that Snakemake grants on this machine")
    parser.add_argument("--log", type=Path, required=True)
    args = parser.parse_args()
    set_up_logging(args.log)
    in_slurm = args.allocation == "slurm"
    return Stage(read_config(args.config), args.sweep, Path.cwd(), args.env_dir, args.log, in_slurm=in_slurm, threads=args.threads)


def set_aside(state_dir: Path, identity: str) -> Path:
    """Rename the state of a sweep, by the identity it has; nothing is deleted."""
    number = 1
    while (target := state_dir.with_name(f"{state_dir.name}.before-{identity[:8]}{f'-{number}' if number > 1 else ''}")).exists():
        number += 1
    state_dir.rename(target)
    return target


def reason_to_start_anew(recorded: Sweep, identity: str, resume: bool) -> str | None:
    """Why what is recorded does not count any more, or None."""
    if not recorded.sessions:
        return None
    if recorded.header.identity != identity:
        return "what its trials depend on has changed"
    if recorded.trials and all(trial.status == "ERROR" for trial in recorded.trials.values()):
        return "all its trials failed"
    return None if resume else "resume is false"


def provenance_of(recorded: Sweep) -> Provenance:
    """Return where the trials come from, by the sessions that ran them; not by what is installed while the outputs are written."""
    environments = [session.header.provenance.environment_sha256 for session in recorded.sessions]
    earlier = tuple(environment for environment in dict.fromkeys(environments) if environment != environments[-1])
    return replace(recorded.header.provenance, earlier_environments=earlier)


def run_sweep(stage: Stage) -> None:
    """Bring a sweep to its end, and write its outputs from the record.

    Raises RaysweepError when it is not complete, when all trials failed, and when another run is at work on it.
    """
    with stage.lock() as lock:
        go_on(stage, lock)


def go_on(stage: Stage, lock: Lock) -> None:
    identity = stage.identity()
    path_to_record = stage.state_dir / RECORD
    recorded = read_sweep(path_to_record)
    if why := reason_to_start_anew(recorded, identity, stage.sweep.resume):
        aside = set_aside(stage.state_dir, recorded.header.identity)
        lock.follow(aside)
        logger.info("%s starts anew, since %s; the old state is kept in %s.", stage.name, why, aside)
        recorded = Sweep()
    total = stage.sweep.num_trials
    if len(recorded.trials) > total:
        logger.info(
            "%s: the record holds %d trials, more than the %d asked for: all of them count.", stage.name, len(recorded.trials), total
        )
    if not recorded.is_complete(total, stage.sweep.time_budget_s):
        done = sum(trial.finished for trial in recorded.trials.values())
        each = stage.sweep.repeats
        repeats = f" ({total // each} configurations, {each} times each)" if each > 1 else ""
        logger.info("%s: %d trials%s%s.", stage.name, total, repeats, f", {done} of them done before" if done else "")
        allocation = stage.allocation()
        header = stage.header(identity, max(total, len(recorded.trials)), stage.sweep.max_epochs, stage.sweep.repeats)
        stage.run_agents(stage.search_job(path_to_record, header, allocation), allocation)
        recorded = read_sweep(path_to_record)
    recorded.set_constraint(stage.sweep.constraint)  # which may have changed since the trials ran
    write_outputs(stage.results_dir, stage.state_dir, recorded, stage.name, stage.sweep.metric, stage.sweep.mode, provenance_of(recorded))
    write_yaml(stage.results_dir / "config.yaml", to_json(stage.config))
    best = read_yaml(stage.results_dir / "best.yaml")
    logger.info(
        "%s: best %s %.4g, trial %s: %s",
        stage.name,
        best["metric"]["name"],
        best["metric"]["value"],
        best["trial_id"],
        json.dumps(best["config"]),
    )


def run_confirm(stage: Stage) -> None:
    """Train the best configuration anew with seeds that no trial used, on all training data, and look at the test set: here and nowhere else."""
    with stage.lock():
        confirm(stage)


def confirm(stage: Stage) -> None:
    best = read_yaml(stage.results_dir / "best.yaml")
    recorded = read_sweep(stage.state_dir / RECORD)
    if best["provenance"]["identity"] != stage.identity():
        raise RaysweepError(
            f"{stage.name}: what its trials depend on has changed since they ran (a file of yours that was edited meanwhile?), so there is nothing to"
            " confirm. Undo that, or run the same command again, which starts the sweep anew"
        )
    sweep = stage.sweep
    has_confirm = sweep.trainable is not None and "confirm" in defined_names_of(stage.code.target.path)
    on = "test" if sweep.model is not None or has_confirm else "validation"
    note = (
        "trained on all training data, evaluated on the test set"
        if on == "test"
        else "repeated on validation, not a test result (the trainable's file defines no confirm(config, seed, epochs))"
    )
    schedule = best.get("schedule", [])
    replays = schedule and sweep.model is None and on == "validation"
    if schedule and not replays and sweep.model is None:
        note += "; with the last configuration throughout, not with the schedule by which it came about"
        schedule = []
    elif schedule:
        note += "; its settings changed at the same epochs"
    config = schedule[0]["config"] if replays else best["config"]
    seeds = confirm_seeds(sweep.seed, sweep.confirm.seeds, {trial.seed for trial in recorded.trials.values()})
    tasks = [
        {"trial": f"confirm-{n}", "seed": seed, "task": "confirm" if on == "test" else "search", "config": config}
        for n, seed in enumerate(seeds, start=1)
    ]
    if sweep.model is not None and best["model_epoch"] is not None:
        tasks.append({"trial": "published", "seed": seeds[0], "task": "evaluate", "config": best["config"]})
    # The name holds all that the result depends on, so that a confirmation of another winner never mixes with this one.
    identity = hashlib.sha256(
        json.dumps([best["provenance"]["identity"], best["epochs"], best["trial_id"], tasks, *schedule], sort_keys=True).encode()
    ).hexdigest()
    path_to_record = stage.state_dir / f"confirm-{identity[:12]}" / RECORD
    confirmed = read_sweep(path_to_record)
    if not confirmed.is_complete(len(tasks), None) or any(trial.status == "ERROR" for trial in confirmed.trials.values()):
        logger.info("%s: training the best configuration anew with %d seeds, %d epochs each.", stage.name, len(seeds), best["epochs"])
        allocation = stage.allocation()
        header = stage.header(identity, len(tasks), best["epochs"])
        typed_tasks, steps = [from_json(ConfirmTask, task) for task in tasks], [from_json(ScheduleStep, step) for step in schedule]
        stage.run_agents(stage.confirm_job(path_to_record, header, allocation, typed_tasks, steps), allocation)
        confirmed = read_sweep(path_to_record)
    write_confirmed(
        stage.results_dir / "confirmed.yaml",
        confirmed,
        stage.name,
        sweep.metric,
        sweep.mode,
        best["config"],
        best["epochs"],
        on,
        note,
    )
    result = read_yaml(stage.results_dir / "confirmed.yaml")
    spread = f" ± {result['standard_deviation']:.2g}" if result["standard_deviation"] is not None else ""
    logger.info("%s: %s on %s %.4g%s (n = %d).", stage.name, sweep.metric, on, result["mean"], spread, result["n"])
