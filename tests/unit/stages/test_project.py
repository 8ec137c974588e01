"""What the rules name: folders, files, options and imports, from the validated config."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysweep.cluster.lock import Lock
from raysweep.common.errors import ConfigError
from raysweep.common.files import read_yaml
from raysweep.config.load import validated
from raysweep.config.model import Config
from raysweep.stages.project import Project

ROOT = Path(__file__).resolve().parents[3]
MODEL = "raysweep.models.lenet:LeNet"
COMMON = ["raysweep.tune.record_callback", "raysweep.tune.search", "raysweep.tune.schedulers"]


def project(root: Path, prefix: str = "", is_module: bool = False, **sweep: Any) -> Project:
    """A project with a sweep `a` of a function of the user's, and a sweep `b` of a model."""
    (root / "train.py").write_text("import helpers\n\n\ndef train(config): ...\n")
    (root / "helpers.py").write_text("")
    of_function = {"trainable": "train.py:train", "search_space": {"x": 1}, "metric": "score"} | sweep
    of_model = {"dataset": "pictures", "model": MODEL, "search_space": {"lr": 0.1, "batch_size": 8}, "metric": "accuracy"}
    config = {
        "env": {"requirements": str(ROOT / "workflow" / "envs" / "node.in")},
        "datasets": {"pictures": {"source": "synthetic"}, "unused": {"source": "synthetic"}},
        "sweeps": {"a": of_function, "b": of_model},
    }
    (root / "c.yaml").write_text(yaml.safe_dump(config))
    checked = validated(config, [root / "c.yaml"], root)
    return Project(checked, Config.of(checked), root, is_module, lambda folder: Path(prefix) / folder)


def test_folders_are_those_of_the_config(tmp_path: Path) -> None:
    found = project(tmp_path)
    assert (found.results, found.state, found.data) == (Path("results"), Path("state"), Path("resources/data"))
    assert found.env.parent == Path("resources/env")
    assert list(found.sweeps) == ["a", "b"]


def test_a_sweeps_config_holds_that_sweep_and_its_data_set(tmp_path: Path) -> None:
    found = project(tmp_path, prefix="outer")
    assert found.config_file("b") == Path("outer/state/.config/b.yaml")
    of_model, of_function = found.config_of("b"), found.config_of("a")
    assert (list(of_model["sweeps"]), list(of_model["datasets"])) == (["b"], ["pictures"])
    assert (list(of_function["sweeps"]), list(of_function["datasets"])) == (["a"], [])
    assert of_model["results_dir"] == "results", "the main workflow's folders stay as the config has them"
    assert list(found.config["sweeps"]) == ["a", "b"]


def test_a_modules_config_holds_the_folders_below_the_prefix(tmp_path: Path) -> None:
    config = project(tmp_path, prefix="outer", is_module=True).config_of("a")
    assert [config[key] for key in ("results_dir", "state_dir", "resources_dir")] == ["outer/results", "outer/state", "outer/resources"]


def test_the_config_of_a_sweep_at_which_a_run_is_at_work_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = project(tmp_path)
    with Lock(tmp_path / "state" / "a", "sweep a"):
        assert sorted(found.write_configs()) == ["state/.config/a.yaml", "state/.config/b.yaml"]
    assert sorted(path.name for path in (tmp_path / "state" / ".config").iterdir()) == ["b.yaml"]
    texts = found.write_configs()
    assert read_yaml(tmp_path / "state/.config/a.yaml") == found.config_of("a")
    assert texts["state/.config/a.yaml"] == (tmp_path / "state/.config/a.yaml").read_text()


def test_a_job_on_slurm_reads_the_config_that_it_was_submitted_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSWEEP_JOB_CONFIG", "/state/.jobs/a/config.yaml")
    assert project(tmp_path).config_file("a") == Path("/state/.jobs/a/config.yaml")


def test_a_folder_that_cannot_be_written_to_is_named_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"^results_dir: results cannot be written to: File exists\. Name another folder"):
        project(tmp_path).write_configs()


def test_sources_are_the_users_files_relative_to_the_root(tmp_path: Path) -> None:
    found = project(tmp_path)
    assert sorted(found.sources_of("a")) == ["helpers.py", "train.py"]
    models = ROOT / "workflow/scripts/raysweep/models"
    assert sorted(found.sources_of("b")) == [str(models / "__init__.py"), str(models / "lenet.py")]


def test_a_loss_function_of_the_users_own_is_a_source_and_is_imported(tmp_path: Path) -> None:
    found = project(tmp_path)
    found.typed.sweeps["b"] = replace(found.typed.sweeps["b"], loss="train.py:train")
    assert set(found.sources_of("b")) > {"helpers.py", "train.py"}
    assert found.imports_of("b")[-2:] == [MODEL, "train.py:train"]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"search_algorithm": "optuna"}, ["optuna"]),
        ({"search_algorithm": "search.py:Mine"}, ["search.py:Mine"]),
        ({"search_algorithm": {"name": "optuna", "sampler": "gp"}}, ["optuna"]),
        ({"search_algorithm": {"name": "optuna", "sampler": "search.py:Mine"}}, ["optuna", "search.py:Mine"]),
        ({"search_algorithm": {"name": "optuna", "sampler": "a.library:Sampler"}}, ["optuna", "a.library"]),
        ({"search_algorithm": "a.library:Searcher"}, ["a.library"]),
        ({"mlflow": {"tracking_uri": "file:x", "experiment": "e"}}, ["mlflow"]),
    ],
)
def test_a_sweep_imports_its_algorithm_and_its_trackers(tmp_path: Path, changes: dict[str, Any], names: list[str]) -> None:
    (tmp_path / "search.py").write_text("class Mine: ...\n")
    found = project(tmp_path)
    is_short = isinstance(changes.get("search_algorithm"), str)
    found.sweeps["a"].update({key: {"name": value} if is_short else value for key, value in changes.items()})
    assert found.imports_of("a") == [*COMMON, *names, "train.py:train"]
    assert found.imports_of("b") == [*COMMON, "raysweep.training.trainer", MODEL]


def test_staged_files_are_the_manifest_and_the_arrays_of_the_splits(tmp_path: Path) -> None:
    found = project(tmp_path)
    assert found.staged("a", "train") == []
    folder = Path("resources/data/pictures")
    assert found.staged("b") == [folder / "manifest.yaml"]
    assert found.staged("b", "train", "test")[1:] == [folder / s / f"{k}.npy" for s in ("train", "test") for k in ("images", "labels")]


def test_a_folder_of_images_has_options(tmp_path: Path) -> None:
    found = project(tmp_path)
    assert found.source_of("pictures") == "synthetic"
    found.config["datasets"]["pictures"].update(source="pictures", image_size=32, test_fraction=0.1, task="classification")
    assert found.source_of("pictures") == ["pictures", "--image-size=32", "--test-fraction=0.1", "--task=classification"]
    found.config["datasets"]["pictures"].update(image_size=None, task=None, group="a site", split="time", validation={"folds": 5})
    assert found.source_of("pictures") == ["pictures", "--test-fraction=0.1", "--group=a site", "--split=time", "--folds=5"]


def test_the_files_of_a_function_that_makes_a_data_set_are_inputs(tmp_path: Path) -> None:
    found = project(tmp_path)
    assert found.data_sources_of("pictures") == []
    found.config["datasets"]["pictures"].update(source="train.py:train")
    assert found.data_sources_of("pictures") == ["helpers.py", "train.py"]
    assert found.environment_for("pictures") == [found.env / "env.yaml"]
    assert found.source_of("pictures") == ["train.py:train", f"--env-dir={found.env}"]


def test_a_table_is_staged_in_the_environment_of_the_trials(tmp_path: Path) -> None:
    found = project(tmp_path, prefix="outer")
    assert found.environment_for("pictures") == []
    found.config["datasets"]["pictures"].update(source="own.csv", target="price")
    assert found.environment_for("pictures") == [found.env / "env.yaml"]
    assert found.source_of("pictures") == ["own.csv", "--target=price", f"--env-dir=outer/{found.env}"]
    assert repr(found.source_of("pictures")) == "['own.csv', '--target=price']", "another environment is no reason to stage again"
