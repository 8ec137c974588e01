"""A record, the parts of the callback, and Tune's trials as they come to them, for unit tests of the room `tune`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune import PlacementGroupFactory
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from raysweep.common.bounds import Bounds
from raysweep.common.machine import NodeSize
from raysweep.config.space import parse_space
from raysweep.record.file import Record
from raysweep.record.progress import ProgressLine
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Result, Trial
from raysweep.slurm.allocation import Deadline
from raysweep.tune.faults import FirstFault
from raysweep.tune.gpu_share import GpuShare
from raysweep.tune.hung_trials import RunningTrials
from raysweep.tune.node_watch import NodeWatch
from raysweep.tune.population import HandOvers
from raysweep.tune.record_callback import CallbackParts, RecordCallback
from raysweep.tune.retention import Retention
from raysweep.tune.retries import RetryPolicy
from raysweep.tune.samplers import ListSampler
from raysweep.tune.schedulers import ShieldedScheduler
from raysweep.tune.stopping import EndOfTrial, TrialLimits
from records import new_record

NO_DEADLINE = Deadline()
STOP: Bounds = {"loss": {"at_most": 0.1}, "score": {"at_least": 0.99}}


class Clock:
    """A clock that tests set forward."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def begin(record: Record, trial_id: str, gpus: float = 0) -> Any:
    """Record that a trial has started. Return the trial as Tune has it."""
    record.write("trial", trial=trial_id, index=int(trial_id), repeat=0, seed=0, config={})
    record.write("start", trial=trial_id, node="n", from_epoch=0)
    return tune_trial(trial_id, gpus)


class StandIn(SimpleNamespace):
    """Stands in for a trial of Tune's, and is equal to what stands for the same trial elsewhere."""

    def __eq__(self, other: object) -> bool:
        return bool(self.trial_id == getattr(other, "trial_id", None))

    def __hash__(self) -> int:
        return hash(self.trial_id)


def tune_trial(trial_id: str, gpus: float = 0) -> Any:
    """Return a stand-in for a trial of Tune's that runs and takes so much of a GPU."""
    trial = StandIn(trial_id=trial_id, latest_checkpoint_result=None, last_result={}, status="RUNNING")
    trial.temporary_state = SimpleNamespace(ray_actor=f"actor of {trial_id}")
    trial.placement_group_factory = PlacementGroupFactory([{"CPU": 1, "GPU": gpus}])
    trial.update_resources = lambda factory: setattr(trial, "placement_group_factory", factory)
    return trial


def end_of_trial(deadline: Deadline = NO_DEADLINE, **options: Any) -> EndOfTrial:
    """Return what decides about the ends of trials of three epochs."""
    return EndOfTrial(TrialLimits(("score",), 3, STOP, deadline), FirstFault(), RunningTrials(None, lambda actor: None), **options)


def report(record: Record, trial_id: str, epoch: int, score: float) -> None:
    """Record a report."""
    record.write("result", trial=trial_id, epoch=epoch, metrics={"score": score}, time_s=float(epoch), node="n")


class Events:
    """The callback with its parts, and the events of Tune as Tune sends them."""

    def __init__(
        self,
        folder: Path,
        *,
        keep_checkpoints: int = 1,
        max_epochs: int = 3,
        max_failures: int = 1,
        deadline: Deadline = NO_DEADLINE,
        verify_lock: Callable[[], None] = lambda: None,
        gpu_share: float = 0,
        measures_gpu: bool = False,
        **header: Any,
    ) -> None:
        self.folder, self.record, self.clock = folder, new_record(folder, **header), Clock()
        faults = FirstFault()
        self.killed: list[Any] = []
        running = RunningTrials(100, self.killed.append, self.clock)
        share = GpuShare(self.record, gpu_share, measures_gpu)
        self.stop = EndOfTrial(TrialLimits(("score",), max_epochs, STOP, deadline), faults, running)
        self.parts = CallbackParts(
            faults=faults,
            running=running,
            nodes=NodeWatch(self.record, (NodeSize("n1", 1, 0),)),
            gpu_share=share,
            retries=RetryPolicy(self.record, faults, running, share, max_failures=max_failures, has_engines=False),
            retention=Retention(self.record, folder / "tune", metric="score", mode="max", keep_checkpoints=keep_checkpoints),
            end_of_trial=self.stop,
            hand_overs=HandOvers(),
            sampler=ListSampler([]),
            progress=ProgressLine("s", total=9, metric="score", mode="max"),
            partial_outputs=None,
            verify_lock=verify_lock,
        )
        self.callback = RecordCallback(self.record, self.parts)
        self.scheduler: TrialScheduler = ShieldedScheduler(FIFOScheduler(), self.record, self.stop, self.parts.retries.is_retried)
        self.scheduler.set_search_properties("score", "max")
        self.controller = SimpleNamespace(get_live_trials=list)

    def start(self, trial_id: str) -> Any:
        """Start a trial."""
        self.record.write("trial", trial=trial_id, index=int(trial_id), repeat=0, seed=0, config={})
        trial = tune_trial(trial_id, self.parts.gpu_share.share)
        self.callback.on_trial_start(0, [], trial)
        return trial

    def report(self, trial: Any, epoch: int, score: float, checkpoint: bool = True, **more: Any) -> bool:
        """Report of a trial, with a checkpoint. Return whether the trial ends."""
        result = {
            "score": score,
            "training_iteration": epoch,
            "time_total_s": float(epoch),
            "node_ip": "10.0.0.1",
            "should_checkpoint": checkpoint,
            **more,
        }
        is_stopped = self.stop(trial.trial_id, result)
        trial.verdict = TrialScheduler.STOP if is_stopped else self.scheduler.on_trial_result(self.controller, trial, result)
        self.callback.on_trial_result(0, [], trial, result)
        trial.last_result = result
        if checkpoint and trial.verdict != TrialScheduler.NOOP:  # Tune has ended the process of a trial that takes over a checkpoint
            path = self.folder / "tune" / trial.trial_id / f"{epoch}"
            path.mkdir(parents=True, exist_ok=True)
            self.callback.on_checkpoint(0, [], trial, SimpleNamespace(path=str(path)))
        return bool(trial.verdict == TrialScheduler.STOP)

    def fail(self, trial: Any, error: BaseException) -> bool:
        """Fail a trial as Tune does, whose trial asks the policy first. Return whether the trial is tried again."""
        self.parts.retries.judge(trial, error)
        is_retried = self.parts.retries.is_retried(trial.trial_id)
        (self.callback.on_trial_recover if is_retried else self.callback.on_trial_error)(0, [], trial)
        return is_retried

    def complete(self, trial: Any) -> str:
        """Complete a trial. Return its status in the record."""
        self.scheduler.on_trial_complete(self.controller, trial, trial.last_result)
        self.callback.on_trial_complete(0, [], trial)
        return self.record.sweep.trials[trial.trial_id].status

    def step(self) -> None:
        """End a step of Tune."""
        self.callback.on_step_end(0, [])

    def checkpoints(self) -> list[str]:
        """Return the checkpoints that exist, as trial/epoch."""
        return sorted(f"{path.parent.name}/{path.name}" for path in self.folder.glob("tune/*/*"))


SAMPLED_SPACE = parse_space(
    {
        "u": {"uniform": [0, 1]},
        "l": {"loguniform": [1e-4, 1e-1]},
        "q": {"qloguniform": [1, 100, 5]},
        "i": {"randint": [0, 5]},
        "n": {"normal": [3, 2]},
        "c": {"choice": [[1, 2], {"k": 1}, None]},
        "deep": {"er": {"uniform": [5, 6]}},
        "constant": 7,
    }
)


def finished_trial(index: int, config: dict[str, Any], value: float | None, status: str = "TERMINATED") -> Trial:
    trial = Trial(f"{index:05d}", index, 0, index, config, status)  # type: ignore[arg-type]
    if value is not None:
        trial.results.append(Result(1, {"score": value}, 1.0, ""))
    return trial


def recorded_sweep(*trials: Trial) -> Sweep:
    return Sweep(trials={trial.trial_id: trial for trial in trials})
