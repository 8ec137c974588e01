"""The folder `model/` of a sweep loads with two lines, wherever it lies and without the workflow."""

from __future__ import annotations

import ast
import math
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from raysweep.data.manifest import DataManifest
from raysweep.data.split import load_split
from raysweep.record.events import Provenance
from raysweep.record.published_model import LOADER, write_loader
from raysweep.record.results import BestMetric, BestResult
from raysweep.training.arrays import read_facts
from raysweep.training.spec import TrainingSpec
from raysweep.training.trainer import Trainer
from raysweep.usercode.freeze import Code
from raysweep.usercode.target import find_target
from staging import stage_into
from typed import sweep_config
from user_files import write_files

NET = """
import torch
from helper_of_net import scale

class Net(torch.nn.Module):
    def __init__(self, width, in_features, num_classes, block=None, limit=0):
        super().__init__()
        assert (block, limit) == ({"depth": 2}, float("inf"))
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(in_features, width), torch.nn.Linear(width, num_classes))

    def forward(self, x):
        assert -1 <= float(x.min()) and float(x.max()) <= 1
        return self.layers(x) * scale
"""
LAZY = """
import torch

class Net(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.LazyConv2d(2, 2), torch.nn.Flatten(), torch.nn.LazyBatchNorm1d(), torch.nn.LazyLinear(3))
        self.to(getattr(torch, dtype))

    def forward(self, x):
        return self.layers(x)
"""
LINEAR = """
import torch

class Net(torch.nn.Module):
    def __init__(self, in_features, out_features):
        super().__init__()
        self.layer = torch.nn.Linear(in_features, out_features)

    def forward(self, x):
        return self.layer(x)
"""


def forget_modules(folder: Path) -> None:
    """Let the next import read the files below `folder` again."""
    for name in [name for name, module in sys.modules.items() if str(getattr(module, "__file__", "")).startswith(str(folder))]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def clean_modules(tmp_path: Path) -> Iterator[None]:
    path, finders = list(sys.path), list(sys.meta_path)
    yield
    sys.path[:], sys.meta_path[:] = path, finders
    forget_modules(tmp_path)


def published(
    root: Path, files: dict[str, str], target: str, data: tuple[DataManifest, Path], **config: Any
) -> tuple[Path, Trainer, np.ndarray]:
    """Train a model for an epoch and publish it. Return the folder, the trainer and rows of the validation part. The sources are deleted."""
    manifest, data_dir = data
    write_files(root, files)
    code, finders = Code.read(find_target(target, root)), list(sys.meta_path)
    model_class, _ = code.load(anew=True)
    sys.meta_path[:] = finders  # a process without the workflow has no finder of frozen files
    config = {"lr": 0.01, "batch_size": 8, **config}
    task_loss = "cross_entropy" if manifest.classes else "mse_loss"
    spec = TrainingSpec(task_loss, "sgd", order_seed=0)
    trainer = Trainer(model_class, config, spec, seed=1, device=torch.device("cpu"), facts=read_facts(data_dir))
    trainer.train_epoch(*map(torch.from_numpy, load_split(data_dir, "train")), 1)
    folder = root / "results" / "model"
    folder.mkdir(parents=True)
    trainer.save(folder, 1)
    (folder / "training_state.pt").unlink()  # as `write_model` does
    sweep = sweep_config(model=target, dataset="d", loss=task_loss)
    metric, counts = BestMetric("loss", "min", 0.5), {"epochs": 1, "num_trials": 1, "num_errors": 0}
    best = BestResult(sweep="s", trial_id="00000", config=config, metric=metric, provenance=Provenance(), model_epoch=1, **counts)
    write_loader(folder, sweep, code, manifest, best)
    for name in files:
        (root / name).unlink()
    moved = root / "moved"
    shutil.move(folder, moved)
    trainer.model.eval()
    return moved, trainer, load_split(data_dir, "validation")[0][:8]


def images(tmp_path: Path) -> tuple[DataManifest, Path]:
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", x=generator.integers(0, 256, (60, 3, 4, 4), dtype=np.uint8), y=np.arange(60) % 3)
    return stage_into(tmp_path, tmp_path / "images.npz", output_dir=tmp_path / "data"), tmp_path / "data"


def test_the_program_needs_nothing_of_the_workflow() -> None:
    imported = {name.name for node in ast.walk(ast.parse(LOADER.read_text())) if isinstance(node, ast.Import) for name in node.names}
    assert imported >= {"torch", "numpy"}
    assert "raysweep" not in LOADER.read_text()


@pytest.mark.parametrize("file", ["net.py", "net-2.py"])
def test_a_model_of_images_predicts_the_names_of_classes(tmp_path: Path, file: str) -> None:
    files = {file: NET, "helper_of_net.py": "scale = 2\n"}
    folder, trainer, rows = published(
        tmp_path, files, f"{file}:Net", images(tmp_path), width=5, block={"depth": 2}, limit=math.inf, momentum=0.9
    )
    loaded = runpy.run_path(str(folder / "load.py"))
    expected = trainer.model(trainer.preparation.inputs(torch.from_numpy(rows)))
    torch.testing.assert_close(loaded["model"](loaded["prepare"](rows)), expected)
    assert loaded["predict"](rows) == [str(label) for label in expected.argmax(1).tolist()]
    assert not loaded["model"].training
    assert loaded["facts"]["config"]["momentum"] == 0.9


def test_the_inputs_of_a_moved_model_are_on_the_device_of_the_model(tmp_path: Path) -> None:
    files = {"net.py": NET, "helper_of_net.py": "scale = 2\n"}
    folder, _, rows = published(tmp_path, files, "net.py:Net", images(tmp_path), width=5, block={"depth": 2}, limit=math.inf)
    loaded = runpy.run_path(str(folder / "load.py"))
    loaded["model"].to("meta")  # stands for a GPU
    assert loaded["prepare"](rows).device.type == "meta"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lazy_layers_get_their_sizes_and_weights_keep_their_type(tmp_path: Path, dtype: str) -> None:
    folder, trainer, rows = published(tmp_path, {"net.py": LAZY}, "net.py:Net", images(tmp_path), dtype=dtype)
    loaded = runpy.run_path(str(folder / "load.py"))
    expected = trainer.model(trainer.preparation.inputs(torch.from_numpy(rows), trainer.dtype))
    torch.testing.assert_close(loaded["model"](loaded["prepare"](rows)), expected)


def test_a_regression_on_a_table_is_encoded_and_predicted_in_the_unit_of_the_target(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sizes, colours = generator.normal(50, 20, 90), generator.choice(["red", "blue"], 90)
    lines = [
        f"{'' if row == 4 else size},{colour},{1000 + size}" for row, (size, colour) in enumerate(zip(sizes.tolist(), colours, strict=True))
    ]
    (tmp_path / "own.csv").write_text("\n".join(["size,colour,price", *lines]) + "\n")
    data = stage_into(tmp_path, tmp_path / "own.csv", output_dir=tmp_path / "data", target="price"), tmp_path / "data"
    folder, trainer, rows = published(tmp_path, {"net.py": LINEAR}, "net.py:Net", data)
    loaded = runpy.run_path(str(folder / "load.py"))
    target = data[0].target
    assert target is not None
    expected = trainer.model(trainer.preparation.inputs(torch.from_numpy(rows))).flatten() * target.deviation[0] + target.mean[0]
    assert loaded["predict"](rows) == pytest.approx(expected.tolist(), rel=1e-6)

    mean_size = data[0].columns[0].fill
    table = {"size": [50.0, math.nan, None], "colour": ["red", "green", None]}
    nullable = pd.DataFrame(table).convert_dtypes()  # missing values are pandas.NA
    assert nullable["size"][1] is nullable["colour"][2] is pd.NA
    for encoded in (loaded["encode"](table), loaded["encode"](nullable)):
        assert encoded[:, 0].tolist() == [50, mean_size, mean_size]
        assert encoded[:2, 1:].tolist() == [[0, 1, 0], [0, 0, 1]], "the categories are blue, red, and any other text"
        assert encoded[2, 1:].tolist() in ([1, 0, 0], [0, 1, 0]), "a missing text is the most frequent one"


def test_one_output_for_two_classes_predicts_their_names(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "own.npz", x=generator.normal(0, 1, (60, 3)), y=np.array(["no", "yes"])[np.arange(60) % 2])
    data = stage_into(tmp_path, tmp_path / "own.npz", output_dir=tmp_path / "data"), tmp_path / "data"
    folder, trainer, rows = published(tmp_path, {"net.py": LINEAR}, "net.py:Net", data, out_features=1)
    outputs = trainer.model(trainer.preparation.inputs(torch.from_numpy(rows)))
    predicted = runpy.run_path(str(folder / "load.py"))["predict"](rows)
    assert predicted == ["yes" if output > 0 else "no" for output in outputs.flatten().tolist()]


def test_two_models_whose_files_have_one_name_load_in_one_process(tmp_path: Path) -> None:
    folders = []
    for name, scale in (("a", 2), ("b", 3)):
        (tmp_path / name).mkdir()
        files = {"net.py": NET, "helper_of_net.py": f"scale = {scale}\n"}
        folders.append(
            published(tmp_path / name, files, "net.py:Net", images(tmp_path / name), width=5, block={"depth": 2}, limit=math.inf)
        )
        forget_modules(tmp_path)
    for folder, trainer, rows in folders:
        loaded = runpy.run_path(str(folder / "load.py"))
        torch.testing.assert_close(
            loaded["model"](loaded["prepare"](rows)), trainer.model(trainer.preparation.inputs(torch.from_numpy(rows)))
        )


@pytest.mark.slow
def test_the_model_that_comes_with_the_workflow_loads_without_the_workflow(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "images.npz", x=generator.integers(0, 256, (30, 3, 32, 32), dtype=np.uint8), y=np.arange(30) % 3)
    data = stage_into(tmp_path, tmp_path / "images.npz", output_dir=tmp_path / "data"), tmp_path / "data"
    _, trainer, rows = published(tmp_path, {}, "raysweep.models.lenet:LeNet", data)
    program = f"import runpy, numpy; loaded = runpy.run_path('moved/load.py'); print(*loaded['predict'](numpy.load({str(tmp_path / 'rows.npy')!r})))"
    np.save(tmp_path / "rows.npy", rows)
    done = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    labels = trainer.model(trainer.preparation.inputs(torch.from_numpy(rows))).argmax(1)
    assert done.stdout.split() == [str(label) for label in labels.tolist()]


def test_the_folder_holds_the_program_the_files_of_the_class_and_the_weights(tmp_path: Path) -> None:
    files = {"net.py": NET, "helper_of_net.py": "scale = 2\n"}
    folder, _, _ = published(tmp_path, files, "net.py:Net", images(tmp_path), width=5, block={"depth": 2}, limit=math.inf)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "code/helper_of_net.py",
        "code/net.py",
        "load.py",
        "model.json",
        "model.safetensors",
    ]
