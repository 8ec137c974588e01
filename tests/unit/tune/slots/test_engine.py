"""An engine in this process gets Tune's calls in the orders in which they may come."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import raysweep.tune.slots.benchmark
from raysweep.data.manifest import DatasetSpec
from raysweep.data.stage import stage
from raysweep.record.events import NotFused
from raysweep.tune.slots.engine import Engine
from raysweep.tune.slots.messages import Benchmark, EngineJob, EngineSetup
from raysweep.tune.trial import RESERVED_KEY, TrialFacts
from raysweep.usercode.freeze import Code
from raysweep.usercode.target import Target, find_target
from typed import engine_job

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 4, 5, stride=4), nn.Linear(4 * 49, 10)

    def forward(self, x):
        return self.out(self.conv(x).relu().flatten(1))

class Normalised(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, width, 5, stride=4), nn.BatchNorm2d(width), nn.Dropout(0.2)
        self.out = nn.Linear(width * 49, 10)

    def forward(self, x):
        return self.out(self.drop(self.norm(self.conv(x)).relu().flatten(1)))

class Dropped(Normalised):
    def __init__(self, width=4):
        super().__init__(width)
        self.norm = nn.GroupNorm(2, width)
"""
CONFIGS = engine_job(Path(), Code(Target(Path(), "Net", None), {})).samples


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EngineJob]:
    stage(DatasetSpec("some", "synthetic", "none", validation_fraction=0.1, seed=0), tmp_path / "d", tmp_path / "data")
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)  # an engine goes to the user's folder
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # an engine sets this variable
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = torch.get_num_threads()
    yield engine_job(tmp_path, Code.read(find_target("net.py:Net", tmp_path)))
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
    monkeypatch.setattr(raysweep.tune.slots.benchmark, "COMPILING_S", 0)
    engine = Engine(job)
    benchmark = engine.benchmark()
    assert isinstance(benchmark, Benchmark), benchmark
    assert benchmark.setup.slots == 2
    if " " in sys.prefix:  # PyTorch 2.13 puts the path of its headers into the compiler's command as it is
        assert benchmark.way.startswith("eager, because the step cannot be compiled: CppCompileError")
    else:
        assert benchmark.way.startswith("compiled in ")
        assert benchmark.setup.prepared_for == 2
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


def test_a_second_engine_measures_nothing_and_trains_in_the_same_way(job: EngineJob) -> None:
    job = replace(job, code=Code.read(find_target("net.py:Normalised", job.root)), num_batch_sizes=1, samples=SAMPLES[::2], num_kinds=2)
    first = Engine(job)
    few_rows(first)
    benchmark = first.benchmark()
    assert isinstance(benchmark, Benchmark), benchmark
    [found] = first.findings.read()
    assert (found.members, found.whole_batches, found.prepared_s) == (2, True, None)
    first.findings.write([replace(found, alone_s=7 * found.eager_s)])
    second = Engine(job)
    few_rows(second)
    again = second.benchmark()
    assert isinstance(again, Benchmark)
    assert again.speed_up == pytest.approx(7)
    assert again.setup == benchmark.setup
    assert again.way == benchmark.way.replace(", in whole batches", ", measured in an earlier run, in whole batches")
    assert second.stacked.settings == first.stacked.settings


def test_no_round_waits_for_a_trial_that_is_stopped_before_it_has_entered(job: EngineJob) -> None:
    engine = Engine(job)
    engine.open(EngineSetup(2, prepared_for=0, unfolds=False, whole_batches=False))
    assert engine.call("early", "stop") is None
    enter(engine, "early", 0)
    enter(engine, "other", 1)
    [result] = train_round(engine, "other")
    assert result["training_iteration"] == 1
    with pytest.raises(RuntimeError, match="the trial has left"):
        engine.call("early", "train")


def few_rows(engine: Engine) -> None:
    """Leave the engine only few rows, with which the benchmark takes a short time."""
    engine.train_data = engine.train_data[0][:300], engine.train_data[1][:300]
    engine.validation_data = engine.validation_data[0][:100], engine.validation_data[1][:100]


SAMPLES = tuple({"lr": 0.01 * (1 + number), "batch_size": (16, 32)[number % 2], "width": (4, 6)[number // 2]} for number in range(4))


@pytest.mark.parametrize(
    ("name", "num_forms", "num_batch_sizes", "whole", "has_forms"),
    [("Dropped", 1, 2, False, False), ("Dropped", 2, 2, False, True), ("Normalised", 1, 2, True, True), ("Normalised", 2, 1, True, True)],
)
def test_an_engine_chooses_whole_batches_for_batch_normalisation(
    job: EngineJob, name: str, num_forms: int, num_batch_sizes: int, whole: bool, has_forms: bool
) -> None:
    samples = tuple(
        {**SAMPLES[number], "batch_size": (16, 32)[number % num_batch_sizes], "width": (4, 6)[number // 2 % num_forms]}
        for number in range(4)
    )
    code = Code.read(find_target(f"net.py:{name}", job.root))
    facts = {"num_forms": num_forms, "num_batch_sizes": num_batch_sizes, "samples": samples, "num_kinds": 4, "max_slots": 8}
    engine = Engine(replace(job, code=code, **facts))
    few_rows(engine)
    benchmark = engine.benchmark()
    assert isinstance(benchmark, Benchmark), benchmark
    assert benchmark.setup.whole_batches is whole
    assert engine.stacked.settings.has_forms is has_forms
    assert benchmark.way.startswith("eager, because ")
    assert ("in whole batches" in benchmark.way) is whole
    assert ("in a stack for each of 2 forms" in benchmark.way) is has_forms
    other = Engine(replace(job, code=code, **facts))
    other.open(benchmark.setup)
    assert other.stacked.settings == engine.stacked.settings, "all engines train in the same way"


def test_steps_are_prepared_only_if_the_measured_trials_have_all_forms(job: EngineJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raysweep.tune.slots.benchmark, "COMPILING_S", 0)
    code = Code.read(find_target("net.py:Dropped", job.root))
    engine = Engine(replace(job, code=code, num_forms=3, samples=SAMPLES, num_kinds=4, max_slots=2))
    few_rows(engine)
    benchmark = engine.benchmark()
    assert isinstance(benchmark, Benchmark), benchmark
    assert benchmark.way.startswith("eager, because 3 forms have only 2 slots, in a stack for each of 3 forms")


def test_batch_normalisation_with_many_batch_sizes_is_trained_one_by_one(job: EngineJob) -> None:
    code = Code.read(find_target("net.py:Normalised", job.root))
    engine = Engine(replace(job, code=code, num_batch_sizes=5, samples=SAMPLES, num_kinds=4))
    few_rows(engine)
    reason = "the rows of a batch depend on each other, as in batch normalisation, and trials have 5 batch sizes, and at most 4 are allowed"
    assert engine.benchmark() == NotFused(reason)


def test_trials_join_the_stack_of_their_form_and_train_as_each_alone(job: EngineJob) -> None:
    code = Code.read(find_target("net.py:Normalised", job.root))
    engine = Engine(replace(job, code=code, num_forms=2, samples=SAMPLES, num_kinds=4, share_rows=False))
    few_rows(engine)
    engine.open(EngineSetup(8, prepared_for=0, unfolds=False, whole_batches=True))
    configs = [{**SAMPLES[0], "width": width} for width in (4, 6, 4, 6, 4)]
    storage: Any = None

    def enter_form(number: int) -> str:
        engine.enter(str(number), {**configs[number], RESERVED_KEY: TrialFacts(number, "search", False)}, storage)
        return str(number)

    first = [enter_form(number) for number in range(3)]
    train_round(engine, *first)
    engine.call("0", "stop")
    results = dict(zip("1234", train_round(engine, *"12", *(enter_form(number) for number in (3, 4))), strict=True))
    for number, epochs in ((1, 2), (2, 2), (3, 1), (4, 1)):
        alone = engine.trainer(configs[number], number)
        losses = [alone.train_epoch(*engine.train_data, epoch) for epoch in range(1, epochs + 1)]
        assert results[str(number)]["train_loss"] == pytest.approx(losses[-1], rel=1e-4)
        assert results[str(number)]["loss"] == pytest.approx(alone.evaluate(*engine.validation_data)["loss"], rel=1e-3)


def test_convolutions_go_the_first_engines_way(job: EngineJob) -> None:
    engine = Engine(job)
    engine.open(EngineSetup(2, prepared_for=0, unfolds=True, whole_batches=False))
    assert engine.stacked.settings.unfolds
