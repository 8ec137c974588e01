"""An engine in this process gets Tune's calls in the orders in which they may come."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import raysweep.tune.slots.engine
from raysweep.data.manifest import DatasetSpec
from raysweep.data.stage import stage
from raysweep.training.spec import TrainingSpec
from raysweep.tune.slots.engine import Engine
from raysweep.tune.slots.messages import Benchmark, EngineJob, EngineSetup
from raysweep.tune.trial import RESERVED_KEY, TrialFacts
from raysweep.usercode.freeze import Code
from raysweep.usercode.target import find_target

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 5, stride=4), nn.Linear(4 * 49, 10)

    def forward(self, x):
        return self.out(self.conv(x).relu().flatten(1))
"""
CONFIGS = [{"lr": 0.01, "batch_size": 16}, {"lr": 0.02, "momentum": 0.9, "batch_size": 32}]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineJob]:
    stage(DatasetSpec("some", "synthetic", "none", validation_fraction=0.1, seed=0), tmp_path / "d", tmp_path / "data")
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)  # an engine goes to the user's folder
    before = torch.get_num_threads()
    yield EngineJob(
        root=tmp_path,
        code=Code.read(find_target("net.py:Net", tmp_path)),
        data_dir=tmp_path / "data",
        spec=TrainingSpec("cross_entropy", "sgd", order_seed=0),
        metric="accuracy",
        max_epochs=1,
        needs_gpu=False,
        threads=1,
        compiler_threads=1,
        memory_mb=4000,
        micro_batch_size=16,
        share_rows=True,
        max_slots=2,
        trials=2,
        samples=tuple(CONFIGS),
    )
    torch.set_num_threads(before)


def enter(engine: Engine, key: str, number: int) -> None:
    engine.enter(key, {**CONFIGS[number], RESERVED_KEY: TrialFacts(number, "search", False)}, storage=None)  # type: ignore[arg-type]


def train_round(engine: Engine, *keys: str) -> list[dict[str, Any]]:
    """Return what these trials report after a round."""
    results: dict[str, dict[str, Any]] = {}
    threads = [threading.Thread(target=lambda key=key: results.update({key: engine.call(key, "train")})) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    return [results[key] for key in keys]


@pytest.mark.slow  # compiles
def test_a_compiled_step_trains_as_each_trial_alone(job: EngineJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raysweep.tune.slots.engine, "COMPILING_S", 0)
    engine = Engine(job)
    benchmark = engine.benchmark()
    assert isinstance(benchmark, Benchmark), benchmark
    assert benchmark.setup.slots == 2
    if " " in sys.prefix:  # PyTorch 2.13 puts the path of its headers into the compiler's command as it is
        assert benchmark.way.startswith("eager, because the step cannot be compiled: CppCompileError")
    else:
        assert benchmark.way.startswith("compiled in ")
        assert benchmark.setup.is_prepared
    engine.open(benchmark.setup)
    for number in range(2):
        enter(engine, str(number), number)
    results = train_round(engine, "0", "1")
    for number, result in enumerate(results):
        alone = engine.trainer(CONFIGS[number], number)
        loss = alone.train_epoch(*engine.train_data, epoch=1)
        expected = alone.evaluate(*engine.validation_data)
        assert (result["training_iteration"], result["train_loss"]) == (1, pytest.approx(loss, rel=1e-4))
        assert result["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_no_round_waits_for_a_trial_that_is_stopped_before_it_has_entered(job: EngineJob) -> None:
    engine = Engine(job)
    engine.open(EngineSetup(2, is_prepared=False, unfolds=False))
    assert engine.call("early", "stop") is None
    enter(engine, "early", 0)
    enter(engine, "other", 1)
    [result] = train_round(engine, "other")
    assert result["training_iteration"] == 1
    with pytest.raises(RuntimeError, match="the trial has left"):
        engine.call("early", "train")


def test_convolutions_go_the_first_engines_way(job: EngineJob) -> None:
    engine = Engine(job)
    engine.open(EngineSetup(2, is_prepared=False, unfolds=True))
    assert engine.stacked.settings.unfolds
