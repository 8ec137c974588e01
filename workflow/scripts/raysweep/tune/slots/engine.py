"""This module contains the engine, a process that trains several trials of a sweep together (fusion.py). Each device has one engine.

Tune's calls to a trial are passed to the engine (manager.py). The engine works in rounds. In each round all trials that wait for training train one epoch.
Tune decides which trials enter or leave the engine. After a round the engine waits until Tune has decided about each trial.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ray.tune import Checkpoint
from ray.util import get_node_ip_address

from raysweep.common.errors import logger
from raysweep.record.events import NotFused
from raysweep.training.arrays import load_tensors, read_facts
from raysweep.training.devices import select_device
from raysweep.training.stacked.trainer import StackedTrainer
from raysweep.training.stacked.verification import prepare
from raysweep.training.trainer import Trainer
from raysweep.tune.private import StorageContext, TrainingResult
from raysweep.tune.slots.benchmark import EngineBenchmark, sample_trainers, stacked_trainer
from raysweep.tune.slots.findings import FindingsFile
from raysweep.tune.slots.messages import Benchmark, EngineJob, EngineSetup
from raysweep.tune.trial import RESERVED_KEY, check_finite

# Maximum time in seconds for which a round with free slots waits for more trials. When a trial has entered or left, other trials often follow soon.
SETTLE_S = 0.5
# Maximum of the waiting time for more trials, as a fraction of the time of the last round. The smaller maximum applies.
SETTLE_SHARE = 0.1
UNDECIDED_S = 60  # maximum time in seconds for which a round waits for Tune's decision about a trial
LEFT = "the trial has left the process in which it trained"


class Member:
    """Represents a trial in the engine, and has the methods that Tune calls."""

    def __init__(self, engine: Engine, config: dict[str, Any], storage: StorageContext) -> None:
        self.engine, self.storage = engine, storage
        self.trainer = engine.trainer({k: v for k, v in config.items() if not k.startswith("__")}, config[RESERVED_KEY].seed)
        self.epoch, self.time_total_s = 0, 0.0
        self.result: dict[str, Any] = {}  # last report of the trial
        self.is_waiting = False
        # Result of the round for which the member waits. The result is the metrics, or the exception that the training raised. None until the round has ended.
        self.outcome: dict[str, float] | Exception | None = None

    def train(self) -> dict[str, Any]:
        """Train one epoch in a round with the other members, and return the report."""
        outcome = self.engine.wait_for_round(self)
        if isinstance(outcome, Exception):
            raise outcome
        self.epoch += 1
        self.time_total_s += outcome["time_this_iter_s"]
        check_finite(self.engine.job.metric, outcome)
        self.result = {
            **outcome,
            "training_iteration": self.epoch,
            "time_total_s": self.time_total_s,
            "should_checkpoint": True,
            "done": False,
            **self.get_auto_filled_metrics(),
        }
        return self.result

    def get_auto_filled_metrics(self, debug_metrics_only: bool = True) -> dict[str, Any]:
        """Return the address of the node, the host name and the process id with which the trial runs."""
        return {"node_ip": self.engine.node_ip, "hostname": socket.gethostname(), "pid": os.getpid()}

    def save(self) -> TrainingResult:
        """Write the same checkpoint as a trial with its own process would write. The checkpoint has a temporary name until the checkpoint is complete."""
        folder = Path(self.storage.trial_fs_path) / f"checkpoint_{self.epoch:06d}"
        aside = folder.with_name(f"{folder.name}.new")
        for leftover in (folder, aside):  # an earlier attempt that failed may have left these folders
            shutil.rmtree(leftover, ignore_errors=True)
        aside.mkdir(parents=True)
        self.trainer.save(aside, self.epoch)
        aside.rename(folder)
        return TrainingResult(Checkpoint(str(folder), self.storage.storage_filesystem), self.result)

    def restore(self, result: TrainingResult) -> None:
        """Set the member to the state of a checkpoint."""
        # The lock is needed because loading sets the random number generator, which all threads share.
        with result.checkpoint.as_directory() as folder, self.engine.building:
            self.epoch = self.trainer.load(Path(folder))
        self.time_total_s = result.metrics["time_total_s"]
        self.result = dict(result.metrics)

    def stop(self) -> None:
        """Remove this member from the engine."""
        self.engine.leave(self)


class Engine:
    """Trains the members in rounds. A Ray actor with several threads calls the methods of this class (manager.EngineProcess)."""

    def __init__(self, job: EngineJob) -> None:
        logging.getLogger("ray.train").setLevel(logging.WARNING)
        os.chdir(job.root)
        torch.set_num_threads(job.threads)
        self.job = job
        self.device = select_device(job.needs_gpu)
        self.memory_bytes = torch.get_device_module(self.device).mem_get_info()[0] if self.device.type != "cpu" else job.memory_mb * 1e6
        self.model_class, _ = job.code.load()
        self.own_loss = job.code.load_loss()
        self.train_data, self.validation_data = (load_tensors(job.data_dir, split, self.device) for split in ("train", "validation"))
        self.facts = read_facts(job.data_dir)
        self.node_ip = get_node_ip_address()
        self.findings = FindingsFile(job, self.facts, self.device)
        self.stacked = stacked_trainer(job, whole_batches=False)
        self.slots = 1
        self.members: dict[str, Member] = {}
        # Keys of the trials that were stopped before they entered the engine. This can happen because the engine's threads may execute Tune's calls in another
        # order.
        self.gone: set[str] = set()
        self.building = threading.Lock()
        self.changed = threading.Condition()
        self.last_change_s = time.monotonic()
        self.settle_s = SETTLE_S
        threading.Thread(target=self._run_rounds, daemon=True).start()

    def trainer(self, config: dict[str, Any], seed: int) -> Trainer:
        """Return a new trainer for the configuration and the seed of a trial."""
        config = {key: value for key, value in config.items() if key != RESERVED_KEY}
        with self.building:  # all threads share one random number generator
            return Trainer(self.model_class, config, self.job.spec, seed=seed, device=self.device, facts=self.facts, own_loss=self.own_loss)

    # ------------------------------------------------------------------------------------------------------ called by the driver

    def benchmark(self) -> Benchmark | NotFused:
        """Find the fastest way to train trials such as the job's samples (benchmark.py). Return NotFused if the trials cannot be stacked."""
        benchmark = EngineBenchmark(self.job, self.trainer, self.train_data, self.device, self.memory_bytes)
        result = benchmark.run(self.findings)
        self.stacked = benchmark.stacked
        return result

    def open(self, setup: EngineSetup) -> None:
        """Prepare the engine to train trials in the way that the first engine's benchmark chose.

        This engine loads the code that the first engine has compiled, if the first engine runs on this node, or runs on the same kind of CPU and could write
        its files.
        """
        self.slots = setup.slots
        if setup.whole_batches != (self.stacked.settings.micro_batch_size is None):
            self.stacked = stacked_trainer(self.job, setup.whole_batches)
        if self.stacked.settings.unfolds != setup.unfolds:
            self.stacked = StackedTrainer(replace(self.stacked.settings, unfolds=setup.unfolds, prepared_for=0))
        if setup.prepared_for and not self.stacked.settings.prepared_for:
            self.findings.read()  # unpacks the compiler's files
            trainers = sample_trainers(self.job, self.trainer, setup.prepared_for)
            prepared = prepare(self.stacked, trainers, *self.train_data, threads=self.job.compiler_threads)
            if isinstance(prepared, str):
                logger.warning("A process trains its trials eager, because its step cannot be made faster: %s", prepared)
            else:
                self.stacked = prepared

    # ----------------------------------------------------------------------------------------------- called by Tune, for one trial

    def enter(self, key: str, config: dict[str, Any], storage: StorageContext) -> None:
        """Add a trial to the engine, unless Tune has already stopped the trial."""
        member = Member(self, config, storage)
        with self.changed:
            if key not in self.gone:
                self.members[key] = member
                self._note_change()

    def call(self, key: str, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the member with the key `key`."""
        with self.changed:
            member = self.members.get(key)
            if member is None and method == "stop":
                self.gone.add(key)
                return None
        if member is None:
            raise RuntimeError(LEFT)
        return getattr(member, method)(*args, **options)

    def leave(self, member: Member) -> None:
        """Remove a member, and wake the thread that waits for the member's next round."""
        with self.changed:
            self.members = {key: other for key, other in self.members.items() if other is not member}
            member.outcome = RuntimeError(LEFT)
            self._note_change()

    def wait_for_round(self, member: Member) -> dict[str, float] | Exception:
        """Wait for the end of the next round. Return the member's metrics, or the exception that the training raised."""
        with self.changed:
            member.is_waiting, member.outcome = True, None
            self._note_change()
            self.changed.wait_for(lambda: member.outcome is not None)
            assert member.outcome is not None
            return member.outcome

    def _note_change(self) -> None:
        self.last_change_s = time.monotonic()
        self.changed.notify_all()

    # ------------------------------------------------------------------------------------------------------------------- rounds

    def _run_rounds(self) -> None:
        while True:
            with self.changed:
                while (patience_s := self._patience_s()) > 0:
                    self.changed.wait(None if math.isinf(patience_s) else patience_s)
                members = [member for member in self.members.values() if member.is_waiting]
            began = time.monotonic()
            outcomes = self._train(members)
            self.settle_s = min(SETTLE_S, SETTLE_SHARE * (time.monotonic() - began))
            with self.changed:
                for member, outcome in zip(members, outcomes, strict=True):
                    member.is_waiting, member.outcome = False, outcome
                self._note_change()

    def _patience_s(self) -> float:
        """Return how many seconds the next round still waits for more members."""
        waiting = sum(member.is_waiting for member in self.members.values())
        if not waiting:
            return math.inf
        if waiting == len(self.members) >= self.slots:
            return 0
        return self.last_change_s + (self.settle_s if waiting == len(self.members) else UNDECIDED_S) - time.monotonic()

    def _train(self, members: list[Member]) -> Sequence[dict[str, float] | Exception]:
        """Train the members for one epoch. Return the metrics of each member, or the exception that the training raised."""
        began = time.monotonic()
        trainers = [member.trainer for member in members]
        try:
            losses = self.stacked.train_epoch(trainers, [member.epoch + 1 for member in members], *self.train_data)
            metrics = self.stacked.evaluate(trainers, *self.validation_data)
        except Exception as error:
            logger.exception("a round of %d trials failed", len(members))
            if self.device.type != "cpu":
                # This process must end, because some members may already have new weights, and after one failure each later use of the GPU in this process
                # fails too. All members continue from their checkpoints in a new process.
                os._exit(1)
            return [error] * len(members)
        time_s = time.monotonic() - began
        return [{**values, "train_loss": loss, "time_this_iter_s": time_s} for values, loss in zip(metrics, losses, strict=True)]
