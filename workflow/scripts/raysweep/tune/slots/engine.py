"""An engine: the process, one a device, in which trials of a sweep are trained together (fused.py). Tune's calls to a trial come here, see seats.py.

It goes from round to round: in each, all trials that are to train go through one epoch. A trial enters and leaves between rounds, when Tune says so; and at the
end of a round the engine waits until Tune has decided about each.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import torch
from ray.train._internal.session import _TrainingResult
from ray.train._internal.storage import StorageContext
from ray.tune import Checkpoint
from ray.util import get_node_ip_address
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from raysweep.training.stacked import Company, bytes_of_member, prepared, seconds_per_row, seconds_per_row_alone, unfolded, why_not
from raysweep.training.trainer import Trainer
from raysweep.tune.trial import OWN, arrays, check_finite
from raysweep.usercode.freeze import Code

logger = logging.getLogger("raysweep")

SETTLE_S = 0.5  # after a trial has come or gone, others may: for so long a round with free seats waits for them, but …
SETTLE_SHARE = 0.1  # … for no longer than this part of the last round
COMPILING_S = 25  # that torch.compile takes about, on one slow core …
COMPILING_SAVES = 0.5  # … and what part of the time it saves, where a stack's many small operations are what takes it
UNDECIDED_S = 60  # a decision that takes so long is not waited for by the others


class Member:
    """A trial in the engine, with the methods that Tune calls."""

    def __init__(self, engine: Engine, config: dict[str, Any], storage: StorageContext) -> None:
        self.engine, self.storage = engine, storage
        config = dict(config)
        self.trainer = engine.trainer({k: v for k, v in config.items() if not k.startswith("__")}, config[OWN]["seed"])
        self.epoch, self.time_total_s = 0, 0.0
        self.is_waiting = False
        self.outcome: dict[str, Any] | Exception | None = None

    def train(self) -> dict[str, Any]:
        """Go through one epoch, in company."""
        outcome = self.engine.wait_for_round(self)
        if isinstance(outcome, Exception):
            raise outcome
        self.epoch += 1
        self.time_total_s += outcome["time_this_iter_s"]
        check_finite(self.engine.job["sweep"]["metric"], outcome)
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
        """Where it runs."""
        return {"node_ip": self.engine.node_ip, "hostname": socket.gethostname(), "pid": os.getpid()}

    def save(self) -> _TrainingResult:
        """Write a checkpoint as an ordinary trial's: aside, and then renamed."""
        folder = Path(self.storage.trial_fs_path) / f"checkpoint_{self.epoch:06d}"
        aside = folder.with_name(f"{folder.name}.new")
        for left in (folder, aside):  # of an attempt that failed
            shutil.rmtree(left, ignore_errors=True)
        aside.mkdir(parents=True)
        self.trainer.save(aside, self.epoch)
        aside.rename(folder)
        return _TrainingResult(Checkpoint(str(folder), self.storage.storage_filesystem), self.result)

    def restore(self, result: _TrainingResult) -> None:
        with result.checkpoint.as_directory() as folder, self.engine.building:  # it sets the generator of random numbers
            self.epoch = self.trainer.load(Path(folder))
        self.time_total_s = result.metrics["time_total_s"]
        self.result = dict(result.metrics)

    def stop(self) -> None:
        self.engine.leave(self)


class Engine:
    """What a Ray actor with threads does (seats.EngineProcess). `job` is described in driver.py."""

    def __init__(self, job: dict[str, Any], threads: int, memory_mb: float) -> None:
        logging.getLogger("ray.train").setLevel(logging.WARNING)
        os.chdir(job["root"])
        torch.set_num_threads(threads)
        self.job = job
        if job["trial_resources"]["gpu"] and not torch.cuda.is_available():
            raise RuntimeError(f"PyTorch {torch.__version__} cannot use the GPU that the engine was given: see env.torch_backend")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.memory_bytes = torch.cuda.mem_get_info()[0] if self.device.type == "cuda" else memory_mb * 1e6
        self.model_class, _ = Code.from_json(job["code"]).load()
        self.train_data, self.validation_data = (arrays(job["data_dir"], split, self.device) for split in ("train", "validation"))
        self.node_ip = get_node_ip_address()
        self.company = Company(job["fuse"]["micro_batch_size"], job["fuse"]["share_rows"])
        self.seats = 1
        self.members: dict[str, Member] = {}
        self.gone: set[str] = set()  # keys of trials that were stopped before they had entered: calls may overtake each other
        self.building = threading.Lock()
        self.changed = threading.Condition()
        self.last_change = time.monotonic()
        self.settle_s = SETTLE_S
        threading.Thread(target=self._rounds, daemon=True).start()

    def trainer(self, config: dict[str, Any], seed: int) -> Trainer:
        config = {key: value for key, value in config.items() if key != OWN}
        sweep = self.job["sweep"]
        options = {"loss": sweep["loss"], "optimizer": sweep["optimizer"], "order_seed": sweep["seed"]}
        with self.building:  # there is one generator of random numbers for all threads
            return Trainer(self.model_class, config, seed=seed, device=self.device, **options)

    # ------------------------------------------------------------------------------------------------------ asked by the driver

    def look(self) -> dict[str, Any]:
        """Whether trials such as these can be trained together, how many fit into memory, how much faster that is, and which way:
        {why_not, seats, speed_up, is_prepared, unfolds, way}."""
        trainers = self._samples(len(self.job["fuse"]["samples"]))
        if why := why_not(self.company, trainers, *self.train_data):
            return {"why_not": why}
        each = bytes_of_member(trainers[0], *self.train_data, self.company.micro_batch_size)
        self.seats = min(max(1, int(0.5 * self.memory_bytes / each)), self.job["fuse"]["seats"])
        many = self._samples(self.seats)
        alone_s, together_s = seconds_per_row_alone(many, *self.train_data), seconds_per_row(self.company, many, *self.train_data)
        if (other := unfolded(self.company, trainers, *self.train_data)) and seconds_per_row(other, many, *self.train_data) < together_s:
            self.company = other
        way = self._prepare_if_worth_it(many, together_s)
        if self.company.prepared_for or self.company.unfolds:
            together_s = seconds_per_row(self.company, many, *self.train_data)
        return {
            "why_not": None,
            "seats": self.seats,
            "speed_up": alone_s / together_s,
            "is_prepared": self.company.prepared_for > 0,
            "unfolds": self.company.unfolds,
            "way": f"{way}, convolutions as matrix products" if self.company.unfolds else way,
        }

    def _samples(self, count: int) -> list[Trainer]:
        """Trainers that differ as those of the sweep do."""
        configs = self.job["fuse"]["samples"]
        return [self.trainer(configs[number % len(configs)], number) for number in range(count)]

    def _prepare_if_worth_it(self, trainers: list[Trainer], seconds_per_row: float) -> str:
        """What has become of it, in words."""
        on_gpu = self.device.type == "cuda"
        if not on_gpu and (why := self._why_not_compiled(seconds_per_row)):
            return f"eager, since {why}"
        began = time.monotonic()
        found = self._prepared(trainers)
        if isinstance(found, str):
            return f"eager, since it cannot be {'captured' if on_gpu else 'compiled'}: {found}"
        self.company = found
        return "as a CUDA graph" if on_gpu else f"compiled in {time.monotonic() - began:.0f} s"

    def _why_not_compiled(self, seconds_per_row: float) -> str | None:
        epochs = self.job["max_epochs"] * math.ceil(self.job["fuse"]["trials"] / self.seats)
        saved_s = COMPILING_SAVES * epochs * len(self.train_data[1]) * seconds_per_row
        if saved_s < COMPILING_S:
            return f"to compile takes longer than the {saved_s:.0f} s that it would save"
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "there is no C++ compiler"
        return None

    def _prepared(self, trainers: list[Trainer]) -> Company | str:
        return prepared(self.company, trainers, *self.train_data, threads=self.job["fuse"]["compiler_threads"])

    def open(self, seats: int, is_prepared: bool, unfolds: bool) -> None:
        """Take in as many trials at a time, in the first engine's way. Where both are on one node what that one compiled is found in the folder for
        temporary files, which they share."""
        self.seats = seats
        if self.company.unfolds != unfolds:
            self.company = Company(self.company.micro_batch_size, self.company.share_rows, unfolds)
        if is_prepared and not self.company.prepared_for:
            found = self._prepared(self._samples(seats))
            if isinstance(found, str):
                logger.warning("Here trials are trained eager, since the step cannot be made faster: %s", found)
            else:
                self.company = found

    # ----------------------------------------------------------------------------------------------------- asked by Tune, of a trial

    def enter(self, key: str, config: dict[str, Any], storage: StorageContext) -> None:
        member = Member(self, config, storage)
        with self.changed:
            if key not in self.gone:
                self.members[key] = member
                self._note_change()

    def call(self, key: str, method: str, *args: Any, **options: Any) -> Any:
        with self.changed:
            member = self.members.get(key)
            if member is None and method == "stop":
                self.gone.add(key)
                return None
        if member is None:
            raise RuntimeError("it has left")
        return getattr(member, method)(*args, **options)

    def leave(self, member: Member) -> None:
        with self.changed:
            self.members = {key: other for key, other in self.members.items() if other is not member}
            member.outcome = RuntimeError("it has left")  # for the thread that waits for a round with it
            self._note_change()

    def wait_for_round(self, member: Member) -> dict[str, Any] | Exception:
        with self.changed:
            member.is_waiting, member.outcome = True, None
            self._note_change()
            self.changed.wait_for(lambda: member.outcome is not None)
            assert member.outcome is not None
            return member.outcome

    def _note_change(self) -> None:
        self.last_change = time.monotonic()
        self.changed.notify_all()

    # ------------------------------------------------------------------------------------------------------------------- rounds

    def _rounds(self) -> None:
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
        """How long to wait for more before the next round."""
        waiting = sum(member.is_waiting for member in self.members.values())
        if not waiting:
            return math.inf
        if waiting == len(self.members) >= self.seats:
            return 0
        return self.last_change + (self.settle_s if waiting == len(self.members) else UNDECIDED_S) - time.monotonic()

    def _train(self, members: list[Member]) -> list[Any]:
        """An epoch of these; what each has to report."""
        began = time.monotonic()
        trainers = [member.trainer for member in members]
        try:
            losses = self.company.train_epoch(trainers, [member.epoch + 1 for member in members], *self.train_data)
            metrics = self.company.evaluate(trainers, *self.validation_data)
        except Exception as error:
            logger.exception("a round of %d trials failed", len(members))
            if self.device.type == "cuda":
                # Some may have the new weights already, and a GPU that has failed once answers nothing more. In a new process all go on from their checkpoints.
                os._exit(1)
            return [error] * len(members)
        time_s = time.monotonic() - began
        return [{**its, "train_loss": loss, "time_this_iter_s": time_s} for its, loss in zip(metrics, losses, strict=True)]
