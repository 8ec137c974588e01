"""The engine in this process: what Tune's calls come to, in the order in which they may come."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import raysweep.tune.slots.engine
from raysweep.data.stage import stage
from raysweep.tune.slots.engine import Engine
from raysweep.tune.trial import OWN
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
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    stage(
        name="some",
        source="synthetic",
        checksum="none",
        validation_fraction=0.1,
        seed=0,
        downloads_dir=tmp_path / "d",
        output_dir=tmp_path / "data",
    )
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)  # an engine goes to the user's folder
    before = torch.get_num_threads()
    yield {
        "code": Code.read(find_target("net.py:Net", tmp_path)).to_json(),
        "root": str(tmp_path),
        "data_dir": str(tmp_path / "data"),
        "max_epochs": 1,
        "trial_resources": {"cpu": 1, "gpu": 0},
        "sweep": {"model": "net.py:Net", "loss": "cross_entropy", "optimizer": "sgd", "seed": 0, "metric": "accuracy"},
        "fuse": {"micro_batch_size": 16, "share_rows": True, "seats": 2, "trials": 2, "samples": CONFIGS, "compiler_threads": 1},
    }
    torch.set_num_threads(before)


def entered(engine: Engine, key: str, number: int) -> None:
    engine.enter(key, {**CONFIGS[number], OWN: {"seed": number, "task": "search", "measures_gpu": False}}, storage=None)  # type: ignore[arg-type]


def trained(engine: Engine, *keys: str) -> list[dict[str, Any]]:
    """What these report after a round."""
    results: dict[str, dict[str, Any]] = {}
    threads = [threading.Thread(target=lambda key=key: results.update({key: engine.call(key, "train")})) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    return [results[key] for key in keys]


@pytest.mark.slow
def test_a_step_that_is_compiled_trains_as_each_does_alone(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raysweep.tune.slots.engine, "COMPILING_S", 0)
    engine = Engine(job, threads=1, memory_mb=4000)
    seen = engine.look()
    assert seen["why_not"] is None
    assert seen["seats"] == 2
    if " " in sys.prefix:  # PyTorch 2.13 puts the path of its headers into the compiler's command as it is
        assert seen["way"].startswith("eager, since it cannot be compiled: CppCompileError")
    else:
        assert seen["way"].startswith("compiled in ")
        assert seen["is_prepared"]
    engine.open(seen["seats"], seen["is_prepared"], seen["unfolds"])
    for number in range(2):
        entered(engine, str(number), number)
    results = trained(engine, "0", "1")
    for number, result in enumerate(results):
        alone = engine.trainer(CONFIGS[number], number)
        loss = alone.train_epoch(*engine.train_data, epoch=1)
        expected = alone.evaluate(*engine.validation_data)
        assert (result["training_iteration"], result["train_loss"]) == (1, pytest.approx(loss, rel=1e-4))
        assert result["loss"] == pytest.approx(expected["loss"], rel=1e-4)


def test_a_trial_that_is_stopped_before_it_has_entered_is_waited_for_by_nobody(job: dict[str, Any]) -> None:
    engine = Engine(job, threads=1, memory_mb=4000)
    engine.open(2, is_prepared=False, unfolds=False)
    assert engine.call("early", "stop") is None
    entered(engine, "early", 0)
    entered(engine, "other", 1)
    [result] = trained(engine, "other")
    assert result["training_iteration"] == 1
    with pytest.raises(RuntimeError, match="it has left"):
        engine.call("early", "train")


def test_convolutions_go_the_first_engines_way(job: dict[str, Any]) -> None:
    engine = Engine(job, threads=1, memory_mb=4000)
    engine.open(2, is_prepared=False, unfolds=True)
    assert engine.company.unfolds
