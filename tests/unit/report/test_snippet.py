"""The program on the page runs."""

from __future__ import annotations

import html
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysweep.report.report import figures_of, render
from raysweep.report.snippet import snippet
from reporting import made_up
from staging import stage_into

ROOT = Path(__file__).resolve().parents[3]


NET = """
import torch
from helper_of_net import scale

class Net(torch.nn.Module):
    def __init__(self, width, act="relu", block=None, limit=0):
        super().__init__()
        assert act == "ta'nh" and block == {"depth": 2, "low": -float("inf")} and limit == float("inf"), (act, block, limit)
        self.width = width
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, width), torch.nn.Linear(width, 10))

    def forward(self, x):
        assert -1 <= float(x.min()) and float(x.max()) <= 1
        return self.layers(x) * scale
"""


@pytest.mark.slow
@pytest.mark.parametrize("file", ["my net/net.py", "my net/net-2.py"])
def test_the_snippet_for_a_model_runs(tmp_path: Path, file: str) -> None:
    torch = pytest.importorskip("torch")
    np = pytest.importorskip("numpy")
    safetensors = pytest.importorskip("safetensors.torch")
    source = tmp_path / file
    source.parent.mkdir()
    source.write_text(NET)
    (source.parent / "helper_of_net.py").write_text("scale = 2\n")
    space = {
        "lr": {"loguniform": [1e-4, 1e-1]},
        "batch_size": 4,
        "weight_decay": 0,
        "momentum": 0.9,
        "nesterov": True,
        "betas": {"choice": [[0.9, 0.999]]},  # not with sgd, but the snippet knows no optimizer
        "width": {"randint": [4, 9]},
        "act": "ta'nh",
        "limit": math.inf,
        "block": {"depth": 2, "low": -math.inf},
    }
    inputs = made_up(tmp_path, model=f"{file}:Net", search_space=space)
    layers = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(3072, inputs.winner.config["width"]), torch.nn.Linear(inputs.winner.config["width"], 10)
    )
    inputs.model_dir.mkdir(parents=True)
    safetensors.save_file({f"layers.{k}": v for k, v in layers.state_dict().items()}, inputs.model_dir / "model.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    images_path = tmp_path / "resources/data/cifar10/validation/images.npy"
    images_path.parent.mkdir(parents=True)
    np.save(images_path, images)

    text = snippet(inputs, tmp_path)
    assert str(tmp_path) not in text  # paths start at the workflow's folder
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = layers(torch.from_numpy(images[:8]).float() / 127.5 - 1).argmax(dim=1)
    assert done.stdout.split() == [inputs.data.classes[i] for i in expected]  # type: ignore[union-attr]
    assert f">{html.escape('import sys')}" in render(inputs, figures_of(inputs), tmp_path)


LAZY = """
import torch

class Net(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.LazyConv2d(2, 8, stride=8), torch.nn.Flatten(), torch.nn.LazyBatchNorm1d(), torch.nn.LazyLinear(10))
        self.to(getattr(torch, dtype))

    def forward(self, x):
        return self.layers(x)
"""


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_snippet_for_a_model_with_lazy_layers_runs(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    np = pytest.importorskip("numpy")
    from raysweep.training.preparation import DataFacts, normalized
    from raysweep.training.spec import TrainingSpec
    from raysweep.training.trainer import Trainer

    (tmp_path / "net.py").write_text(LAZY)
    known: dict[str, Any] = {}
    exec(LAZY, known)
    inputs = made_up(tmp_path, model="net.py:Net", search_space={"lr": 0.1, "batch_size": 4, "dtype": dtype})
    spec = TrainingSpec("cross_entropy", "sgd", order_seed=0)
    trainer = Trainer(known["Net"], inputs.winner.config, spec, seed=1, device=torch.device("cpu"), facts=DataFacts((3, 32, 32)))
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 32, 32), dtype=np.uint8)
    trainer.train_epoch(torch.from_numpy(images), torch.arange(12) % 10, 1)
    inputs.model_dir.mkdir(parents=True)
    trainer.save(inputs.model_dir, 1)
    images_path = tmp_path / "resources/data/cifar10/validation/images.npy"
    images_path.parent.mkdir(parents=True)
    np.save(images_path, images)

    text = snippet(inputs, tmp_path)
    assert "# a first batch gives the lazy layers their sizes" in text
    assert ("# the weights are not float32" in text) == (dtype != "float32")
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = trainer.model.eval()(normalized(torch.from_numpy(images[:8]), trainer.dtype)).argmax(dim=1)
    assert done.stdout.split() == [inputs.data.classes[i] for i in expected]  # type: ignore[union-attr]


TABLE = """
import torch

class Net(torch.nn.Module):
    def __init__(self, in_features, out_features):
        super().__init__()
        self.layer = torch.nn.Linear(in_features, out_features)

    def forward(self, x):
        return self.layer(x)
"""


@pytest.mark.slow
def test_the_snippet_for_a_regression_on_floats_standardises_them_and_prints_the_unit_of_the_target(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    np = pytest.importorskip("numpy")
    from raysweep.data.manifest import Validation
    from raysweep.data.split import load_split
    from raysweep.training.arrays import read_facts
    from raysweep.training.spec import TrainingSpec
    from raysweep.training.trainer import Trainer

    generator = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", x=generator.normal(50, 20, (90, 3)), y=generator.normal(1000, 100, 90))
    made_up_sweep = made_up(tmp_path, model="net.py:Net", search_space={"lr": 0.1, "batch_size": 4})
    data_dir = tmp_path / "resources/data/cifar10"
    manifest = stage_into(tmp_path, tmp_path / "own.npz", output_dir=data_dir, validation=Validation(3))
    inputs = replace(made_up_sweep, data=manifest, data_dir=data_dir)
    (tmp_path / "net.py").write_text(TABLE)
    known: dict[str, Any] = {}
    exec(TABLE, known)
    spec = TrainingSpec("mse_loss", "sgd", order_seed=0)
    trainer = Trainer(known["Net"], inputs.winner.config, spec, seed=1, device=torch.device("cpu"), facts=read_facts(data_dir))
    inputs.model_dir.mkdir(parents=True)
    trainer.save(inputs.model_dir, 1)

    text = snippet(inputs, tmp_path)
    assert "model = Net(in_features=3, out_features=1)" in text
    done = subprocess.run([sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = torch.from_numpy(load_split(data_dir, "validation")[0][:8])
    assert manifest.target is not None
    expected = trainer.model(trainer.preparation.inputs(rows)).flatten() * manifest.target.deviation[0] + manifest.target.mean[0]
    assert [float(line) for line in done.stdout.split()] == pytest.approx(expected.tolist(), rel=1e-6)
    page = render(inputs, figures_of(inputs), tmp_path)
    assert "standardised with the mean and the standard deviation of the training part" in page
    assert "3 folds, drawn with seed 0<" in page.replace("\n", "")
    assert "0.2 of all rows, set aside with the same seed before that split<" in page.replace("\n", "")


def test_the_snippet_for_the_bundled_model_imports_it_from_the_workflow(tmp_path: Path) -> None:
    text = snippet(made_up(tmp_path), ROOT)
    assert 'sys.path.insert(0, "workflow/scripts")' in text
    assert "from raysweep.models.lenet import LeNet" in text
    assert "model = LeNet()" in text  # lr and batch_size are no business of its constructor


def test_the_snippet_for_a_trainable_names_the_checkpoint_and_runs(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, {"on": "validation"}, dataset=None, model=None, optimizer=None, loss=None, trainable="train.py:train")
    inputs.model_dir.mkdir(parents=True)
    (inputs.model_dir / "weights.pt").write_text("")
    done = subprocess.run([sys.executable, "-c", snippet(inputs, tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["results/lenet/model/weights.pt"]
    assert done.stdout.splitlines()[0] == str(inputs.winner.config)


@pytest.mark.slow
def test_numbers_without_a_literal_stand_in_the_snippet_as_python(tmp_path: Path) -> None:
    trainable = {"dataset": None, "model": None, "optimizer": None, "loss": None, "trainable": "train.py:train"}
    space = {"a": math.inf, "b": {"c": -math.inf}, "d": {"choice": [[1, math.nan]]}, "e": "inf"}
    inputs = made_up(tmp_path, {"on": "validation"}, search_space=space, **trainable)
    known: dict[str, Any] = {}
    exec(snippet(inputs, tmp_path), known)
    assert repr(known["config"]) == repr({"a": math.inf, "b": {"c": -math.inf}, "d": [1, math.nan], "e": "inf"})
    assert f">{html.escape('from pathlib')}" in render(inputs, figures_of(inputs), tmp_path)
