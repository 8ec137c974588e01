from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from raysweep.common.errors import ConfigError
from raysweep.config.load import Module, env_arguments, keys_of, validated, with_numbers
from raysweep.config.model import Config
from raysweep.config.schema import PATH_TO_SCHEMA

ROOT = PATH_TO_SCHEMA.parents[1]


def num_trials(validated_config: dict[str, Any]) -> int:
    """Return how many trials the only sweep of a config has."""
    [sweep] = Config.of(validated_config).sweeps.values()
    return sweep.num_trials


def sweep(**changes: Any) -> dict[str, Any]:
    """A sweep that is allowed as it is; a change to None leaves the key out."""
    whole = {
        "dataset": "synthetic",
        "model": "raysweep.models.lenet:LeNet",
        "search_space": {"lr": {"loguniform": ["1e-4", "1e-1"]}, "batch_size": {"choice": [2, 4]}},
        "metric": "accuracy",
    } | changes
    return {key: value for key, value in whole.items() if value is not None}


def config(**changes: Any) -> dict[str, Any]:
    return {"datasets": {"synthetic": {"source": "synthetic"}}, "sweeps": {"s": sweep(**changes)}}


def own(**changes: Any) -> dict[str, Any]:
    """A sweep of a trainable."""
    return config(**({"model": None, "dataset": None, "trainable": "train.py:train"} | changes))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path in (f"workflow/envs/{name}{kind}" for name in ("node", "dashboard") for kind in (".in", ".txt")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    (tmp_path / "train.py").write_text("def train(config): ...\n")
    return tmp_path


def check(root: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Validate `given`, as read from the file config.yaml."""
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return validated(yaml.safe_load(path.read_text()), [path], root)


def refusal(root: Path, given: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        check(root, given)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize("path", ["config/config.yaml", "config/demo.yaml"])
def test_the_configs_that_come_with_the_workflow_are_valid(path: str) -> None:
    assert validated(yaml.safe_load((ROOT / path).read_text()), [ROOT / path], ROOT)["sweeps"]


def test_defaults_are_filled_in_at_every_level(root: Path) -> None:
    whole = check(root, config())
    assert whole["results_dir"] == "results"
    assert whole["env"]["wheels"] == "download"
    assert whole["datasets"]["synthetic"] == {
        "source": "synthetic",
        "checksum": "upstream",
        "validation_fraction": 0.1,
        "seed": 0,
        "image_size": None,
        "test_fraction": None,
    }
    sweep = whole["sweeps"]["s"]
    assert sweep["mode"] == "max"
    assert sweep["num_samples"] == 1
    assert sweep["loss"] == "cross_entropy"
    assert sweep["optimizer"] == "sgd"
    assert sweep["scheduler"] == {"name": "none"}
    assert sweep["allocation"]["runtime"] == 60
    assert sweep["confirm"] == {"seeds": 3, "runtime": 30}


def test_two_sweeps_share_no_default(root: Path) -> None:
    whole = check(root, {**config(), "sweeps": {"a": sweep(), "b": sweep()}})
    assert whole["sweeps"]["a"]["allocation"] is not whole["sweeps"]["b"]["allocation"]
    assert check(root, config())["env"]["modules"] is not whole["env"]["modules"]


def test_a_validated_config_is_valid_and_stays_as_it_is(root: Path) -> None:
    whole = check(root, config(scheduler="asha", num_samples="1e1"))
    assert check(root, whole) == whole


def test_the_given_config_is_left_as_it_was(root: Path) -> None:
    given = config(scheduler="asha")
    check(root, given)
    assert given == config(scheduler="asha")


def test_the_short_form_of_a_scheduler_gets_its_options(root: Path) -> None:
    whole = check(root, config(scheduler="asha", search_algorithm="optuna", max_epochs=4))["sweeps"]["s"]
    assert whole["scheduler"] == {"name": "asha", "grace_period": 1, "reduction_factor": 4}
    assert whole["search_algorithm"] == {"name": "optuna", "n_startup_trials": 10, "multivariate": True}


def test_a_trainable_has_neither_loss_nor_optimizer(root: Path) -> None:
    assert not {"loss", "optimizer"} & check(root, own())["sweeps"]["s"].keys()
    assert "sweeps.s.loss: 'nll_loss' is not allowed beside trainable" in refusal(root, own(loss="nll_loss"))


def test_whole_numbers_come_as_integers_however_they_are_written(root: Path) -> None:
    whole = check(root, config(num_samples="1e2", max_epochs=3.0, max_concurrent=2.0, scheduler={"name": "asha", "grace_period": 2.0}))
    values = [whole["sweeps"]["s"][key] for key in ("num_samples", "max_epochs", "max_concurrent")]
    values.append(whole["sweeps"]["s"]["scheduler"]["grace_period"])
    assert values == [100, 3, 2, 2]
    assert {type(value) for value in values} == {int}


@pytest.mark.parametrize("text", ["1e-4", "1E5", "-2.5e+3", ".5e1", "+1.e0"])
def test_numbers_that_yaml_reads_as_text(text: str) -> None:
    assert with_numbers({"a": [text, (text,)]}) == {"a": [float(text), [float(text)]]}


@pytest.mark.parametrize("text", ["e4", "1e", "1e4 ", "0x1e4", "1-e4", "nan", "inf", "", "1e4\n", "12", "1.5"])
def test_text_that_is_none(text: str) -> None:
    assert with_numbers([text]) == [text]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_in_scientific_notation_is_one(number: float) -> None:
    assert with_numbers(f"{number:.17e}") == number


def test_with_numbers_is_a_copy() -> None:
    given = {"a": {"b": [1, {"c": 2}]}}
    copy = with_numbers(given)
    assert copy == given
    assert copy["a"]["b"][1] is not given["a"]["b"][1]


@pytest.mark.parametrize(
    "time", [0, -1, "3", "3 hours", "h", "", "1h30", "1h\n2", True, [1], float("nan"), float("inf"), None, "0s", "0.0h 0m"]
)
def test_what_is_no_time(root: Path, time: Any) -> None:
    given = config()
    given["sweeps"]["s"]["allocation"] = {"runtime": time}
    assert refusal(root, given).endswith(
        f"sweeps.s.allocation.runtime: {time!r} is not allowed: minutes above 0, or a time such as 90s, 3h or 1d12h"
    )


@pytest.mark.parametrize("key", ["time_budget", "trial_timeout"])
@pytest.mark.parametrize("time", [0, "0s", "0d0h", "0e0"])
def test_no_time_is_no_limit(root: Path, key: str, time: Any) -> None:
    read = 0.0 if time == "0e0" else time
    assert f"sweeps.s.{key}: {read!r} is not allowed: minutes above 0, a time such as" in refusal(root, config(**{key: time}))


@pytest.mark.parametrize("time", ["0h1s", "0.05s", "10s", " 1d 0h"])
def test_zeros_in_a_time_above_zero(root: Path, time: str) -> None:
    assert check(root, config(time_budget=time))["sweeps"]["s"]["time_budget"] == time


@pytest.mark.parametrize(
    "distribution",
    [
        {"randint": [1, 9]},
        {"lograndint": [1, 9]},
        {"quniform": [1, 9, 2]},
        {"qloguniform": [1, 9, 1]},
        {"choice": [4, 8.0]},
        {"grid": [4]},
        16,
    ],
)
def test_batch_sizes_that_are_whole(root: Path, distribution: Any) -> None:
    assert num_trials(check(root, config(search_space={"lr": 1, "batch_size": distribution}))) == 1


def test_less_loss_is_better(root: Path) -> None:
    for metric in ("loss", "train_loss"):
        assert check(root, config(metric=metric, mode="min"))["sweeps"]["s"]["mode"] == "min"
    assert check(root, own(metric="loss"))["sweeps"]["s"]["mode"] == "max", "what a trainable calls loss is its own affair"


def test_a_file_that_the_target_imports_is_no_python(root: Path) -> None:
    (root / "train.py").write_text("import helper\ndef train(config): ...\n")
    (root / "helper.py").write_text("x = 1\ndef f(:\n")
    assert refusal(root, own()) == (
        f"config.yaml: sweeps.s.trainable: 'train.py:train' is not allowed: {root}/helper.py is not Python that can be read: invalid syntax (line 2)"
    )


def test_the_dashboard_with_what_it_needs(root: Path) -> None:
    given = config() | {"ray": {"dashboard": True}, "env": {"requirements": "workflow/envs/dashboard.in"}}
    assert check(root, given)["ray"]["dashboard"]


def test_a_gpu_that_any_sweep_asks_for_changes_the_environment_only_where_it_decides_the_build(root: Path) -> None:
    def serves_gpus(gpus: int, **env: str) -> bool:
        given = config() | {"env": env}
        given["sweeps"]["other"] = sweep(allocation={"gpus_per_node": gpus})
        return env_arguments(Config.of(check(root, given)), root).gpu

    assert serves_gpus(1)
    assert not serves_gpus(0)
    assert not serves_gpus(1, wheels="site")
    assert not serves_gpus(1, torch_backend="cpu")


def test_num_trials_counts_the_grid_once_for_each_sample(root: Path) -> None:
    space = {"lr": {"grid": [0.1, 0.2, 0.3]}, "batch_size": {"grid": [2, 4]}, "momentum": {"uniform": [0, 1]}}
    assert num_trials(check(root, config(search_space=space, num_samples=5))) == 30
    assert num_trials(check(root, config(num_samples=5))) == 5


def test_a_refusal_names_the_file_that_says_it(root: Path) -> None:
    base, more = root / "base.yaml", root / "sub/more.yaml"
    more.parent.mkdir()
    base.write_text(yaml.safe_dump(config(mode="maximum")))
    more.write_text("sweeps: {s: {num_samples: 3}}")

    def place(merged: dict[str, Any]) -> str:
        with pytest.raises(ConfigError) as caught:
            validated(merged, [base, more], root)
        return str(caught.value).partition(": ")[0]

    assert place(config(num_samples=3, mode="maximum")) == "base.yaml"
    assert place(config(num_samples=0)) == "--config", "no file says so"
    assert place(config(metric=None)) == "sub/more.yaml", "the last file that says something of the sweep"
    more.write_text("sweeps: {s: {num_samples: 0}}")
    assert place(config(num_samples=0)) == "sub/more.yaml"
    more.write_text("sweeps: {s: {scheduler: ahsa}}")
    assert place(config(scheduler="ahsa")) == "sub/more.yaml", "the short form"
    assert place({**config(), "state_dir": "."}) == "sub/more.yaml", "of a default only the surroundings are in a file"


def test_where_the_config_of_a_module_stands() -> None:
    part: dict[str, Any] = {"sweeps": {}}
    assert keys_of(part, part) == ()
    assert keys_of(part, {"a": 1, "b": {"c": part}}) == ("b", "c")
    assert keys_of(part, {"a": {"sweeps": {}}}) is None, "only its like"


def test_a_refusal_of_a_modules_config_names_the_file_and_the_keys_of_the_other_workflow(root: Path) -> None:
    path = root / "outer.yaml"
    path.write_text(yaml.safe_dump({"title": "t", "deep": {"part": config(num_samples=0)}}))

    def refusal_of(part: dict[str, Any], module: Module) -> str:
        with pytest.raises(ConfigError) as caught:
            validated(part, [path], root, module)
        return str(caught.value)

    place = "sweeps.s.num_samples: 0 is not allowed"
    assert refusal_of(config(num_samples=0), Module("m", ("deep", "part"))).startswith(f"outer.yaml: deep.part.{place}")
    assert refusal_of(config(num_samples=0), Module("m", None)).startswith(f"module m: {place}")
    assert refusal_of(config(num_samples=-1), Module("m", ("deep", "part"))).startswith("module m: deep.part.sweeps.s.num_samples: -1")
    assert refusal_of(config(num_samples=0), Module("m", ("title", "x"))).startswith(f"module m: title.x.{place}")


def test_the_requirements_of_a_module_are_those_that_come_with_the_workflow(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("def train(config): ...\n")
    assert validated(own(), [], tmp_path, Module("m", None))["env"]["requirements"] == str(ROOT / "workflow/envs/node.in")
    (tmp_path / "mine.in").write_text("ray\n")
    (tmp_path / "mine.txt").write_text("ray==2\n")
    given = own() | {"env": {"requirements": "mine.in"}}
    assert validated(given, [], tmp_path, Module("m", None))["env"]["requirements"] == "mine.in"


@pytest.mark.parametrize("value", [None, [], 5, "x", {}])
def test_sweeps_is_a_map_that_is_not_empty(root: Path, value: Any) -> None:
    assert refusal(root, {"sweeps": value}).endswith(f"sweeps: {value!r} is not allowed: a map that is not empty")


def test_a_config_without_sweeps(root: Path) -> None:
    assert refusal(root, {}).endswith("sweeps: missing. Allowed: a map that is not empty")


@pytest.mark.parametrize("name", ["a/b", "/", "-rf", "a..b", "..", ".", ".a", "", "a b", "a\n", "ä", "a" * 101, 1, None, True, 1.5])
def test_names_that_are_no_plain_folder(root: Path, name: Any) -> None:
    text = refusal(root, {**config(), "sweeps": {name: sweep()}})
    assert "is not allowed: a name of letters, digits, and . _ -" in text
    assert repr(name) in text
    assert "is not allowed: a name of letters" in refusal(root, {**config(), "datasets": {name: {}}})


@pytest.mark.parametrize("name", ["a", "0", "lenet.adam-2_b", "A" * 100])
def test_names_that_are(root: Path, name: str) -> None:
    assert list(check(root, {**config(), "sweeps": {name: sweep()}})["sweeps"]) == [name]


def test_a_key_that_stands_twice_at_any_depth(root: Path) -> None:
    path = root / "twice.yaml"
    path.write_text("sweeps:\n  s:\n    allocation: {nodes: 1, nodes: 2}\n")
    with pytest.raises(ConfigError, match=r"nodes: stands twice in one map \(line 3"):
        validated(config(), [path], root)


def test_merge_keys_of_yaml_are_no_repetition(root: Path) -> None:
    path = root / "merged.yaml"
    path.write_text(
        "sweeps:\n  a: &a {trainable: 'train.py:train', search_space: {x: 1}, metric: m}\n  b:\n    <<: *a\n    metric: n\n",
        encoding="utf-8",
    )
    whole = validated(yaml.safe_load(path.read_text()), [path], root)
    assert whole["sweeps"]["b"]["metric"] == "n"


@pytest.mark.parametrize(
    ("folders", "key"),
    [
        ({"state_dir": "results/state"}, "state_dir"),
        ({"results_dir": "state"}, "results_dir"),
        ({"resources_dir": "results/../state/x"}, "resources_dir"),
        ({"results_dir": "."}, "state_dir"),
        ({"results_dir": "a", "state_dir": "a"}, "results_dir"),
    ],
)
def test_folders_in_one_another(root: Path, folders: dict[str, str], key: str) -> None:
    text = refusal(root, config() | folders)
    assert f" {key}: " in text
    assert text.endswith("Allowed: three folders, none in another")


def test_folders_whose_names_only_begin_alike(root: Path) -> None:
    assert check(root, config() | {"state_dir": "results2"})["state_dir"] == "results2"


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (config(num_samples=True), "num_samples: True is not allowed: a whole number, at least 1"),
    (config(num_samples=1.5), "num_samples: 1.5 is not allowed: a whole number, at least 1"),
    (config(num_samples=float("nan")), "num_samples: nan is not allowed: a whole number, at least 1"),
    (config(seed=-1), "seed: -1 is not allowed: a whole number, at least 0"),
    (config(metric=""), "metric: '' is not allowed: a name of letters, digits, and . _ / -"),
    (config(model=None), "s: needs either model or trainable, and not both"),
    (config(trainable="train.py:train"), "s: needs either model or trainable, and not both"),
    (config(model="lenet"), "model: 'lenet' is not allowed: write path/to/file.py:name or package.module:name"),
    (config(dataset=None), "dataset: missing: a model is trained on a data set, so name one of datasets"),
    (config(dataset="mnist"), "dataset: 'mnist' is not allowed: one of synthetic"),
    ({"sweeps": {"s": sweep()}}, "dataset: 'synthetic' is not allowed: there are no datasets"),
    (config(metric="loss"), "mode: 'max' is not allowed with metric loss, of which less is better: write mode: min"),
    (config(metric="train_loss", mode="max"), "mode: 'max' is not allowed with metric train_loss, of which less is better"),
    (config(metric="f1"), "metric: 'f1' is not allowed with model: one of accuracy, loss, train_loss"),
    (config(scheduler=None) | {"x": 1}, "x: unknown key. Allowed: results_dir, "),
    (config(scheduler=5), "scheduler: 5 is not allowed: a name, or {name: …, options}"),
    (config(scheduler={"grace_period": 1}), "scheduler.name: missing. Allowed: one of none, asha, hyperband, median, pbt"),
    (config(scheduler={"name": ["asha"]}), "scheduler.name: ['asha'] is not allowed: one of none, asha, hyperband, median, pbt"),
    (config(scheduler="pbt", max_concurrent=2), "max_concurrent: 2 is not allowed with scheduler pbt, which takes all trials"),
    (config(scheduler="pbt", search_algorithm="optuna"), "search_algorithm: 'optuna' is not allowed with scheduler pbt, which takes all"),
    (config(scheduler={"name": "asha", 3: 1}), "scheduler.3: unknown option of asha. Allowed: grace_period, "),
    (config(scheduler={"name": "none", "grace_period": 1}), "scheduler.grace_period: unknown option of none. Allowed: no option"),
    (
        config(scheduler={"name": "asha", "brackets": 1}),
        "scheduler.brackets: unknown option of asha. Allowed: grace_period, reduction_factor",
    ),
    (config(scheduler={"name": "asha", "reduction_factor": 1}), "scheduler.reduction_factor: 1 is not allowed: a number, above 1"),
    (
        config(points_to_evaluate=[{"lr": 5}]),
        "points_to_evaluate.0: lr: 5 is not allowed: a number from 0.0001 to 0.1, as search_space says",
    ),
    (
        config(num_samples=2, points_to_evaluate=[{}, {"batch_size": 3}]),
        "points_to_evaluate.1: batch_size: 3 is not allowed: one of 2, 4, as search_space says",
    ),
    (config(points_to_evaluate=[{"depth": 3}]), "points_to_evaluate.0: depth: is not searched. Allowed: lr, batch_size"),
    (
        config(points_to_evaluate=[{1: 2}]),
        "points_to_evaluate.0: 1: is not allowed: a point is nested as search_space is, with text as keys",
    ),
    (config(constraint={"loss": {"below": 1}}), "constraint.loss: {'below': 1} is not allowed: {at_least: number} or {at_most: number}"),
    (config(mlflow="local"), "mlflow: 'local' is not allowed: env.requirements, "),
    (config(wandb="mine"), "wandb: 'mine' is not allowed: env.requirements, "),
    (config(search_algorithm="hyperopt"), "search_algorithm.name: 'hyperopt' is not allowed: env.requirements, "),
    (config(search_algorithm="nosuch.py:Search"), "search_algorithm.name: 'nosuch.py:Search' is not allowed: there is no file nosuch.py"),
    (
        config(search_algorithm="a library:Search"),
        "search_algorithm.name: 'a library:Search' is not allowed: write path/to/file.py:Class or",
    ),
    (config(stop={"error": {"at_most": 1}}), "stop.error: 'error' is not allowed: one of accuracy, loss, train_loss, which model reports"),
    (config(stop={"loss": 0.1}), "stop.loss: 0.1 is not allowed: {at_least: number} or {at_most: number}"),
    (config(stop={"loss": {"at_most": "0.1x"}}), "stop.loss: {'at_most': '0.1x'} is not allowed: {at_least: number} or {at_most: number}"),
    (config(points_to_evaluate=[{}] * 2), "points_to_evaluate: 2 points are not allowed: at most num_samples, 1"),
    (config(points_to_evaluate=[3]), "points_to_evaluate.0: 3 is not allowed: a map"),
    (
        config(points_to_evaluate=[{"lr": 0.01}], search_space={"lr": {"loguniform": [1e-4, 1]}, "batch_size": {"grid": [2]}}),
        "points_to_evaluate: is not allowed where search_space has grid values",
    ),
    (config(scheduler={"name": "asha", "grace_period": 2}), "scheduler.grace_period: 2 is not allowed: at most max_epochs, 1"),
    (
        config(scheduler="hyperband", search_algorithm="optuna"),
        "search_algorithm: 'optuna' is not allowed with scheduler hyperband, which takes all configurations before",
    ),
    (config(scheduler="hyperband", max_concurrent=2), "max_concurrent: 2 is not allowed with scheduler hyperband, which takes all trials"),
    (
        config(scheduler="hyperband", trial_resources={"gpu": "auto"}, allocation={"gpus_per_node": 1}),
        "trial_resources.gpu: auto is not allowed with scheduler hyperband, which starts all trials before one could be measured",
    ),
    (config(search_algorithm="bayes"), "search_algorithm.name: 'bayes' is not allowed: one of random, grid, optuna"),
    (
        config(search_algorithm="grid", search_space={"lr": {"uniform": [0.1, 1]}, "batch_size": {"grid": [1]}}),
        "search_space.lr: uniform is not allowed with search_algorithm grid: grid, a nested space",
    ),
    (
        config(search_algorithm="optuna", search_space={"lr": 0.1, "batch_size": {"grid": [1]}}),
        "search_space.batch_size: grid is not allowed with search_algorithm optuna: choice, or search_algorithm random or grid",
    ),
    (own(search_algorithm="grid", search_space={"a": {"b": {"uniform": [0, 1]}}}), "search_space.a.b: uniform is not allowed with search"),
    (config(search_space={}), "search_space: {} is not allowed: a map that is not empty"),
    (config(search_space={"lr": 0.1}), "search_space.batch_size: missing: the training of a model needs it"),
    (config(search_space={"lr": 0, "batch_size": 1}), "search_space.lr: 0 is not allowed: numbers above 0"),
    (config(search_space={"lr": {"uniform": [0, 1]}, "batch_size": 1}), "search_space.lr: 0.0 is not allowed: numbers above 0"),
    (config(search_space={"lr": {"choice": [0.1, "x"]}, "batch_size": 1}), "search_space.lr: 'x' is not allowed: numbers above 0"),
    (
        config(search_space={"lr": 1, "batch_size": {"uniform": [2, 16]}}),
        "batch_size: uniform is not allowed here: whole numbers of at least 1",
    ),
    (config(search_space={"lr": 1, "batch_size": {"loguniform": [2, 16]}}), "batch_size: loguniform is not allowed here: whole numbers"),
    (config(search_space={"lr": 1, "batch_size": {"quniform": [2, 16, 0.5]}}), "batch_size: quniform is not allowed here: whole numbers"),
    (
        config(search_space={"lr": 1, "batch_size": {"normal": [100, 1]}}),
        "batch_size: normal is not allowed here: whole numbers of at least 1",
    ),
    (config(search_space={"lr": 1, "batch_size": {"quniform": [0, 16, 2]}}), "batch_size: 0.0 is not allowed: whole numbers of at least 1"),
    (config(search_space={"lr": 1, "batch_size": {"choice": [2.5]}}), "batch_size: 2.5 is not allowed: whole numbers of at least 1"),
    (config(search_space={"lr": 1, "batch_size": {"choice": [0, 2]}}), "batch_size: 0 is not allowed: whole numbers of at least 1"),
    (config(search_space={"lr": 1, "batch_size": True}), "batch_size: True is not allowed: whole numbers of at least 1"),
    (
        config(optimizer="adam", search_space={"lr": 1, "batch_size": 1, "momentum": 0.9}),
        "search_space.momentum: is not allowed with optimizer adam: it has no such setting",
    ),
    (config(search_space={"lr": 1, "batch_size": 1, "betas": 0}), "search_space.betas: is not allowed with optimizer sgd"),
    (config(trial_resources={"cpu": 0}), "trial_resources.cpu: 0 is not allowed: a number, above 0"),
    (config(trial_resources={"cpu": 1.5}), "trial_resources.cpu: 1.5 is not allowed: a trial runs on one node, so at most"),
    (config(trial_resources={"cpu": float("nan")}), "trial_resources.cpu: nan is not allowed: a number, above 0"),
    (config(trial_resources={"gpu": -1}), "trial_resources.gpu: -1 is not allowed: a number of at least 0"),
    (config(trial_resources={"gpu": "half"}), "trial_resources.gpu: 'half' is not allowed: a number of at least 0"),
    (
        config(trial_resources={"gpu": "auto"}),
        "trial_resources.gpu: auto is not allowed: a trial runs on one node, so at most allocation.gpus_per_node, 0",
    ),
    (config(trial_resources={"gpu": "some"}), "trial_resources.gpu: 'some' is not allowed: a number of at least 0, or auto"),
    (config(trial_resources={"gpu": 1}), "trial_resources.gpu: 1 is not allowed: a trial runs on one node, so at most allocation.gpus_per"),
    (
        config(trial_resources={"gpu": 1.5}, allocation={"gpus_per_node": 2}),
        "trial_resources.gpu: 1.5 is not allowed: a part of one GPU, or whole GPUs",
    ),
    (config(allocation={"nodes": 2, "min_nodes": 3}), "allocation.min_nodes: 3 is not allowed: at most allocation.nodes, 2"),
    *[
        (
            config(allocation={"gpus_per_node": 1, "gpu_type": gpu_type}),
            f"allocation.gpu_type: {gpu_type!r} is not allowed: a name as `sinfo -o %G`",
        )
        for gpu_type in ("a100:2", "a100 --wrap=x", "a100;id", "$(id)", "a,b", "--exclusive", "", "a100\n", "a'b", 7)
    ],
    (own(fuse="on"), "fuse: 'on' is not allowed: auto or off with a trainable, since only trials of a model can be trained together"),
    (config(fuse="maybe"), "fuse: 'maybe' is not allowed: auto, on or off"),
    (
        config(repeats=3, scheduler="hyperband"),
        "repeats: 3 is not allowed with scheduler hyperband, which pauses trials one by one: 1, or scheduler asha",
    ),
    (
        config(allocation={"max_wait": 10, "resubmit": 2}),
        "allocation.max_wait: 10 is not allowed: null where resubmit is above 0, since Slurm counts it from the first start of a job",
    ),
    (
        config() | {"ray": {"dashboard": True}},
        "ray.dashboard: True is not allowed: env.requirements, workflow/envs/node.in, does not list ray[default]. Name workflow/envs/dashboard.in",
    ),
    (config() | {"env": {"cache_dir": "cache"}}, "env.cache_dir: 'cache' is not allowed: an absolute path, or null"),
    (config() | {"env": {"cache_dir": "/tmp", "wheels": "none"}}, "env.cache_dir: '/tmp' is not allowed with wheels: none"),
    (config() | {"env": None}, "env: None is not allowed: a map"),
    (config() | {"env": {"modules": "gcc"}}, "env.modules: 'gcc' is not allowed: a list"),
    (config() | {"env": {"modules": ["gcc", "; rm"]}}, "env.modules.1: '; rm' is not allowed: a module's name, such as python/3.11"),
    (config() | {"env": {"torch_backend": "cuda"}}, "env.torch_backend: 'cuda' is not allowed: auto, cpu, pypi, or a build such as cu130"),
    (
        {**own(), "datasets": {"d": {"checksum": "md5:abc"}}},
        "datasets.d.checksum: 'md5:abc' is not allowed: upstream, none, md5:<32 hex",
    ),
    ({**own(), "datasets": {"d": {"validation_fraction": 1}}}, "d.validation_fraction: 1 is not allowed: a number, above 0 and below 1"),
    (
        {**own(), "datasets": {"d": {"validation_fraction": float("nan")}}},
        "d.validation_fraction: nan is not allowed: a number, above 0",
    ),
]


@pytest.mark.parametrize(("given", "expected"), MISTAKES, ids=[text.partition(" ")[0] + str(n) for n, (_, text) in enumerate(MISTAKES)])
def test_mistakes(root: Path, given: dict[str, Any], expected: str) -> None:
    text = refusal(root, given)
    assert text.startswith("config.yaml: ")
    assert expected in text


def lines(root: Path, given: dict[str, Any]) -> list[str]:
    """Return the lines of a refusal, without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        check(root, given)
    return [line.removeprefix("config.yaml: ") for line in caught.value.lines]


def test_all_mistakes_are_reported_in_the_order_of_the_config(root: Path) -> None:
    given = {
        "sweeps": {
            "b": sweep(num_samples=0, model="nets.py:Net", allocation={"nodes": 1, "min_nodes": 3}, fuse="maybe"),
            "a": sweep(metric="f1", search_space={"lr": {"uniform": [2, 1]}, "batch_size": {"choice": []}}, scheduler="ahsa"),
            "c": sweep(),
        },
        "datasets": {"synthetic": {"seed": -1}},
        "env": {"torch_backend": "cuda", "requirements": "none.in"},
        "state_dir": "results/state",
    }
    assert [line.partition(": ")[0] for line in lines(root, given)] == [
        "sweeps.b.model",
        "sweeps.b.num_samples",
        "sweeps.b.allocation.min_nodes",
        "sweeps.b.fuse",
        "sweeps.a.search_space.lr.uniform",
        "sweeps.a.search_space.batch_size.choice",
        "sweeps.a.metric",
        "sweeps.a.scheduler.name",
        "datasets.synthetic.seed",
        "env.torch_backend",
        "env.requirements",
        "state_dir",
    ]


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"num_sample": 5, "points_to_evaluate": [{}, {}]}, "num_sample"),  # and not: 2 points are too many
        ({"metrics": "accuracy", "metric": None}, "metrics"),  # and not: metric is missing
        ({"cpus_per_node": 4, "trial_resources": {"cpu": 2}}, "cpus_per_node"),  # and not: a trial does not fit a node
        ({"allocation": {"cpus_pernode": 4}, "trial_resources": {"cpu": 2}}, "allocation.cpus_pernode"),
        ({"search_space": {"lr": {"uniform": [1, 0]}, "batch_size": 1}, "points_to_evaluate": [{"lr": 0.5}]}, "search_space.lr.uniform"),
        ({"scheduler": {"name": "asha", "grace_period": 0}, "search_algorithm": {"name": "optuna"}}, "scheduler.grace_period"),
        ({"mode": "maximum", "metric": "loss"}, "mode"),
        ({"model": 5, "optimizer": "adam", "search_space": {"x": 1}}, "model"),
        ({"trial_resources": {"gpu": "some"}, "scheduler": "hyperband"}, "trial_resources.gpu"),
        ({"search_algorithm": "bayes", "scheduler": "pbt"}, "search_algorithm.name"),
    ],
)
def test_a_mistake_has_no_second_line_for_what_follows_from_it(root: Path, changes: dict[str, Any], key: str) -> None:
    [line] = lines(root, config(**changes))
    assert line.startswith(f"sweeps.s.{key}: ")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"dataset": {"synthetic": {}}}, "dataset"),  # instead of datasets
        ({"datasets": {"a/b": {}}}, "datasets.a/b"),
        ({"datasets": 5}, "datasets"),
        ({"env": {"requirement": "own.in"}, "ray": {"dashboard": True}}, "env.requirement"),
        ({"env": {"requirements": 5}, "ray": {"dashboard": True}}, "env.requirements"),
        ({"env": {"container": "none.sif", "wheels": "download", "python": "python3"}, "results_dir": "a,b"}, "env.container"),
        ({"results_dir": 5, "state_dir": "5/a"}, "results_dir"),
        ({"results_dir": "-a", "state_dir": "./-a"}, "results_dir"),
    ],
)
def test_nor_has_a_mistake_outside_the_sweeps(root: Path, changes: dict[str, Any], key: str) -> None:
    given = config() | changes
    if "dataset" in changes:
        del given["datasets"]
    [line] = lines(root, given)
    assert line.startswith(f"{key}: ")


def test_an_unknown_key_leaves_the_other_values_of_its_sweep_to_the_schema(root: Path) -> None:
    given = config(num_sample=5, mode="maximum", metric=None)
    assert [line.partition(": ")[0] for line in lines(root, given)] == ["sweeps.s.num_sample", "sweeps.s.mode", "sweeps.s.metric"]


def test_a_requirements_file_that_cannot_be_read_is_one_line(root: Path) -> None:
    (root / "own.in").write_text("ray[default] ==\n")
    (root / "own.txt").write_text("")
    given = config(mlflow="local") | {"env": {"requirements": "own.in"}, "ray": {"dashboard": True}}
    [line] = lines(root, given)
    assert line.startswith(f"env.requirements: {root}/own.in: 'ray[default] ==' is not a requirement: ")


def test_mistakes_in_several_files(root: Path) -> None:
    base, more = root / "base.yaml", root / "more.yaml"
    base.write_text(yaml.safe_dump(config(mode="maximum", seed=-1)))
    more.write_text("sweeps: {s: {num_samples: 0, allocation: {nodes: 0}}}")
    merged = config(mode="maximum", seed=-1, num_samples=0, allocation={"nodes": 0})
    with pytest.raises(ConfigError) as caught:
        validated(merged, [base, more], root)
    assert caught.value.lines == (
        "base.yaml: sweeps.s.mode: 'maximum' is not allowed: one of max, min",
        "base.yaml: sweeps.s.seed: -1 is not allowed: a whole number, at least 0",
        "more.yaml: sweeps.s.num_samples: 0 is not allowed: a whole number, at least 1",
        "more.yaml: sweeps.s.allocation.nodes: 0 is not allowed: a whole number, at least 1",
    )


def test_keys_that_stand_twice_beside_other_mistakes(root: Path) -> None:
    path = root / "twice.yaml"
    space = "search_space: {x: 1}, metric: m"
    path.write_text(
        f"sweeps:\n  a: {{trainable: 'train.py:train', {space}, seed: 1, seed: -1}}\n  b: {{{space}, mode: big}}\n  b: {{trainable: 5}}\n"
        f"  c: {{trainable: 'train.py:train', {space}, seed: -1}}\nresults_dir: a\nresults_dir: b\n"
    )
    with pytest.raises(ConfigError) as caught:
        validated(yaml.safe_load(path.read_text()), [path], root)
    begins = [line.partition(" (")[0].removeprefix(f"{path}: ").removeprefix("twice.yaml: ") for line in caught.value.lines]
    assert begins == [
        "seed: stands twice in one map",
        "b: stands twice in one map",
        "sweeps.c.seed: -1 is not allowed: a whole number, at least 0",
        "results_dir: stands twice in one map",
    ]


def test_a_map_that_contains_itself_is_read_once(root: Path) -> None:
    path = root / "loop.yaml"
    path.write_text("sweeps: &s\n  a: {b: 1, b: 2}\n  c: *s\n")
    with pytest.raises(ConfigError, match=r"^[^\n]*b: stands twice in one map \(line 2"):
        validated(config(), [path], root)


def test_yaml_reads_off_and_on_as_booleans(root: Path) -> None:
    for value, meant in ((False, "off"), (True, "on"), ("off", "off"), ("on", "on"), ("auto", "auto")):
        assert check(root, config(fuse=value))["sweeps"]["s"]["fuse"] == meant


def test_the_table_of_the_readme_fits_the_schema() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "workflow/scripts/config_reference.py"), "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_a_table_that_is_out_of_date_is_told_and_mended(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    text = (ROOT / "config/README.md").read_text()
    readme.write_text(text.replace("| `results_dir` |", "| `result_dir` |"))
    command = [sys.executable, str(ROOT / "workflow/scripts/config_reference.py"), "--readme", str(readme)]
    done = subprocess.run([*command, "--check"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "run workflow/scripts/config_reference.py" in done.stderr
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    assert readme.read_text() == text


def test_the_example_of_the_readme_is_valid(root: Path) -> None:
    """One example of each distribution, and the sweep that stands above them."""
    blocks = (ROOT / "config/README.md").read_text().split("```yaml\n")[1:]
    example, space = (yaml.safe_load(block.partition("```")[0]) for block in blocks)
    assert num_trials(check(root, example)) == 20
    assert num_trials(check(root, own(**space))) == 2
