"""Defines Stage, which knows the folders, the identity, the jobs, the allocation and the lock of one sweep.

The rules run_sweep, confirm and plan create a Stage first.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from raysweep import __version__
from raysweep.cluster import launcher
from raysweep.cluster.job import ConfirmJob, ConfirmTask, SearchJob, TuneJob
from raysweep.cluster.launcher import Crew, LaunchRequest
from raysweep.cluster.lock import DRIVER_LOCK, Lock
from raysweep.common.errors import BUG, FAULT, START_AGAIN, ConfigError, RaysweepError, WorldError, logger, set_up_logging
from raysweep.common.files import sha256_of_file
from raysweep.common.patience import NO_BETTER_FOR
from raysweep.common.typed_json import to_json
from raysweep.config.model import Config, SweepConfig, read_config
from raysweep.config.recipe import Recipe
from raysweep.config.tasks import refusal_for_staged
from raysweep.data.manifest import read_manifest
from raysweep.environment.archive import pack
from raysweep.environment.manifest import Environment
from raysweep.environment.requirements import lock_of
from raysweep.record.events import Provenance, ScheduleStep, SessionHeader
from raysweep.record.file import first_header
from raysweep.record.identity import EPOCHS_ENV, Identity, sweep_identity
from raysweep.record.results import Goal
from raysweep.slurm.allocation import Allocation, Deadline, SlurmJob, trial_resources
from raysweep.usercode.freeze import Code
from raysweep.usercode.target import find_target

RECORD = "record.jsonl"


@dataclass(frozen=True)
class Call:
    """Contains the folders and options with which a rule calls a stage. Relative paths in the config start at `root`."""

    root: Path
    env_dir: Path
    path_to_log: Path
    in_slurm: bool = False
    threads: int = 1  # number of CPUs that Snakemake allows the stage to use on this machine
    # File for the exit code of the sweep, which the job writes that finishes the sweep. None where the sweep has one job.
    path_to_end: Path | None = None


def is_locked(wheels: str) -> bool:
    """Return whether the lock file says which packages are installed. Otherwise the site or the user chooses the packages of the environment."""
    return wheels not in ("site", "none")


def with_horizon(sweep: SweepConfig, path_to_record: Path) -> SweepConfig:
    """Return the sweep with a length of the schedule of the learning rate.

    Without `training.schedule.epochs` the length is `max_epochs` of the first session of the record, because trials that went on to a larger `max_epochs`
    would otherwise have another schedule than the epochs that they have trained.
    """
    if sweep.training is None or sweep.training.schedule.epochs is not None:
        return sweep
    first = first_header(path_to_record)
    return replace(sweep, training=sweep.training.with_horizon(first.max_epochs if first else sweep.max_epochs))


def identity_of(sweep: SweepConfig, code: Code, *, data: str | None, lock: str | None) -> Identity:
    """Return the identity of a sweep that trains `code`."""
    return sweep_identity(to_json(sweep), sources=code.sha256(), data=data, lock=lock, reads_max_epochs=code.names(EPOCHS_ENV))


class Stage:
    """Knows the config, the folders, the environment and the trained code of the sweep `name`."""

    def __init__(self, config: Config, name: str, call: Call) -> None:
        self.config, self.name, self.call = config, name, call
        self.results_dir = call.root / config.results_dir / name
        self.state_dir = call.root / config.state_dir / name
        dataset = config.sweeps[name].dataset
        self.data_dir = call.root / config.resources_dir / "data" / dataset if dataset else None
        self.sweep = with_horizon(config.sweeps[name], self.path_to_record)
        self.environment = Environment.load(call.env_dir)
        self.code = Code.read(*[find_target(text, call.root) for text in self.sweep.targets])
        self.data_sha256 = self._check_data()

    def _check_data(self) -> str | None:
        """Return the checksum of the staged data, or None where the sweep has no data set.

        Raises WorldError where the staged data is not the data that the config describes, and ConfigError where the loss, a metric or the
        augmentation of a model does not fit the data.
        """
        if self.data_dir is None or self.sweep.dataset is None:
            return None
        manifest = read_manifest(self.data_dir)
        manifest.check_spec(self.data_dir, self.config.datasets[self.sweep.dataset])
        sweep = self.sweep
        bounded = [metric for metric in sweep.stop if metric != NO_BETTER_FOR]
        metrics: dict[str, Iterable[str]] = {"objectives" if sweep.objectives else "metric": sweep.compared_metrics}
        metrics |= {"metrics": sweep.metrics, "stop": bounded, "constraint": sweep.constraint}
        if sweep.training and sweep.training.augment and len(manifest.image_shape) != 3:
            raise ConfigError(
                f"sweeps.{self.name}.training.augment: is not allowed with rows that are no images, {list(manifest.image_shape)}: []"
            )
        if sweep.loss is not None and (refusal := refusal_for_staged(manifest.task, sweep.loss, metrics)):
            raise ConfigError(f"sweeps.{self.name}.{refusal[0]}: {refusal[1]}")
        return manifest.data_sha256

    @property
    def has_folds(self) -> bool:
        """Return whether the data set of the sweep has folds."""
        return self.sweep.dataset is not None and self.config.datasets[self.sweep.dataset].folds is not None

    @property
    def path_to_record(self) -> Path:
        return self.state_dir / RECORD

    @property
    def goal(self) -> Goal:
        return Goal(self.name, self.sweep.metric, self.sweep.mode)

    def identity(self) -> Identity:
        """Return the identity of the sweep, which contains everything on which the result of a trial depends.

        The sweep goes on from its record after a change of any other part of the config.
        """
        env = self.config.env
        lock = sha256_of_file(lock_of(self.call.root / env.requirements)) if is_locked(env.wheels) else self.environment.environment_sha256
        return identity_of(self.sweep, self.code, data=self.data_sha256, lock=lock)

    def set_aside(self, target: Path) -> None:
        """Rename the state folder to `target`. The next session is the first one of a new record, so its `max_epochs` is the default of the schedule."""
        self.state_dir.rename(target)
        self.read_horizon()

    def read_horizon(self) -> None:
        """Set the length of the schedule of the learning rate again, because another job may have begun or set aside the record."""
        self.sweep = with_horizon(self.config.sweeps[self.name], self.path_to_record)

    def header(self, identity: str, total: int, max_epochs: int, repeats: int = 1) -> SessionHeader:
        """Return the description of the sweep that a session writes to the record for the report and for `make watch`."""
        sweep = self.sweep
        return SessionHeader(
            name=self.name,
            identity=identity,
            num_trials=total,
            max_epochs=max_epochs,
            repeats=repeats,
            has_folds=repeats > 1 and self.has_folds,
            metric=sweep.metric,
            mode=sweep.mode,
            objectives=sweep.objectives,
            choose=sweep.choose,
            seed=sweep.seed,
            search_space=sweep.search_space,
            search_algorithm=sweep.search_algorithm,
            scheduler=sweep.scheduler,
            dataset=sweep.dataset,
            model=sweep.model,
            trainable=sweep.trainable,
            optimizer=sweep.optimizer,
            loss=sweep.loss,
            training=sweep.training or Recipe(),
            trial_resources=sweep.trial_resources,
            constraint=sweep.constraint,
            no_better_for=sweep.end_when.no_better_for,
            max_gpu_hours=sweep.max_gpu_hours,
            version=__version__,
            provenance=Provenance(__version__, identity, self.environment.environment_sha256, self.data_sha256),
        )

    def search_job(self, record: Path, header: SessionHeader, allocation: Allocation) -> SearchJob:
        """Return the job of a driver that runs the trials of the sweep that are left."""
        resources_dir = self.call.root / self.config.resources_dir
        return SearchJob(**vars(self._base_job(record, header, allocation)), resources_dir=resources_dir)

    def confirm_job(
        self, record: Path, header: SessionHeader, allocation: Allocation, tasks: Sequence[ConfirmTask], schedule: Sequence[ScheduleStep]
    ) -> ConfirmJob:
        """Return the job of a driver that trains the best configuration anew."""
        base = self._base_job(record, header, allocation, schedule)
        return ConfirmJob(**vars(base), tasks=tuple(tasks), model_dir=self.results_dir / "model")

    def _base_job(self, record: Path, header: SessionHeader, allocation: Allocation, schedule: Sequence[ScheduleStep] = ()) -> TuneJob:
        config = self.config
        return TuneJob(
            name=self.name,
            sweep=self.sweep,
            header=header,
            code=self.code,
            root=self.call.root,
            record=record,
            workflow_dirs=tuple(self.call.root / folder for folder in (config.results_dir, config.state_dir, config.resources_dir)),
            data_dir=self.data_dir,
            max_epochs=header.max_epochs,
            total=header.num_trials,
            trial_resources=trial_resources(self.sweep, allocation),
            slurm_job=allocation.slurm_job,
            deadline=Deadline.of(allocation.started, allocation.ends, self.sweep.allocation.walltime_margin_s),
            schedule=tuple(schedule),
        )

    def allocation(self) -> Allocation:
        """Return the nodes that this run may use, which are the nodes of its Slurm job or this machine."""
        return Allocation.of_slurm() if self.call.in_slurm else Allocation.local(self.sweep.allocation, self.call.threads)

    def lock(self) -> Lock:
        """Return the lock that prevents a second run of the sweep at the same time."""
        return Lock(self.state_dir, f"sweep {self.name}", job=SlurmJob.current() if self.call.in_slurm else None)

    def run_agents(self, job: SearchJob | ConfirmJob, allocation: Allocation, crew: Crew | None = None) -> None:
        """Run the job on the nodes of the allocation. `crew` contains the agents on these nodes where other jobs can join.

        Exits with the driver's exit code where the driver failed and has logged the reason. Raises RaysweepError where the driver failed without a reason.
        """
        # Remove the lock of a driver that has died. The next driver cannot always do this, because the environment modules may have removed
        # Slurm's commands from the driver's PATH.
        with Lock(job.state_dir, f"sweep {self.name}", DRIVER_LOCK):
            pass
        if self.call.in_slurm:
            pack(self.call.env_dir)  # does nothing where the archive exists; a run without Slurm builds the environment without an archive
        keep_log(self.call.path_to_log)
        doing = "unpacking the environment on each node of the job, and starting Ray" if self.call.in_slurm else "starting Ray"
        logger.info("%s: %s.", self.name, doing)
        cache_dir = self.config.env.cache_dir
        request = LaunchRequest(
            allocation,
            self.call.env_dir,
            self.call.path_to_log,
            min_nodes=self.sweep.allocation.min_nodes,
            has_dashboard=self.config.ray.dashboard,
            cache_dir=Path(cache_dir) if cache_dir else None,
            crew=crew,
            tls=self.config.ray.tls,
        )
        code = launcher.run(request, job).exit_code
        if code == START_AGAIN:
            if crew is not None:
                raise WorldError(f"{self.name}: the time of job {allocation.job_id} is nearly over")
            try:
                allocation.start_again()
            except WorldError as error:
                raise WorldError(f"{self.name}: incomplete, resumable: {error}. Run the same command again") from None
        self._raise_for(code)

    def _raise_for(self, code: int) -> None:
        """Exit or raise RaysweepError where the driver's exit code `code` is not 0."""
        path_to_log = self.call.path_to_log
        if code < 0:
            raise WorldError(f"{self.name}: the driver was killed (signal {-code}): see {path_to_log}. Run the same command again to go on")
        if code == FAULT:
            raise WorldError(f"{self.name}: the driver has failed because of a fault of the system")
        if code in (1, BUG, 130):
            sys.exit(code)  # the driver has logged the reason, see run_entry_point
        if code:
            raise RaysweepError(f"{self.name}: the driver ended with exit code {code}: see {path_to_log}")


def keep_log(path_to_log: Path) -> None:
    """Give the log of the rule a second name, which contains the time, in a folder beside the log.

    Snakemake deletes the log when the rule starts again, as after a restart of the job by Slurm. The file then keeps the second name.
    """
    folder = path_to_log.with_suffix("")
    try:
        folder.mkdir(exist_ok=True)
        os.link(path_to_log, folder / f"{datetime.now():%Y-%m-%dT%H-%M-%S}.log")
    except OSError as error:  # some file systems have no hard links, and the sweep does not depend on the log
        logger.debug("The log of this session has no second name in %s: %s", folder, error)


def stage_from_command_line(description: str | None) -> tuple[Stage, Path]:
    """Return the stage that the command line of an entry point describes, and the path of the stage's config file."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--sweep", required=True, help="name of the sweep")
    parser.add_argument("--config", type=Path, required=True, help="YAML file with the validated config of this sweep")
    parser.add_argument("--env-dir", type=Path, required=True, help="folder of the node environment")
    parser.add_argument(
        "--allocation", choices=["local", "slurm"], required=True, help="this machine, or the job of Slurm that this runs in"
    )
    parser.add_argument("--threads", type=int, required=True, help="CPUs that Snakemake grants on this machine")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--end", type=Path, help="file for the exit code of the sweep, in a sweep of several jobs")
    args = parser.parse_args()
    set_up_logging(None if args.end else args.log)  # of several jobs, only the job that leads the sweep writes the log
    call = Call(Path.cwd(), args.env_dir, args.log, args.allocation == "slurm", args.threads, args.end)
    return Stage(read_config(args.config), args.sweep, call), args.config
