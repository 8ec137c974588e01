from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from configs import ROOT, check, config, own, sweep
from raysweep.common.errors import ConfigError
from raysweep.config.load import Module, env_arguments, keys_of, validated, with_numbers
from raysweep.config.model import Config
from raysweep.config.recipe import Recipe


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
        "task": None,
        "target": None,
        "group": None,
        "split": "random",
        "validation": None,
    }
    sweep = whole["sweeps"]["s"]
    assert sweep["mode"] == "max"
    assert sweep["num_samples"] == 1
    assert sweep["loss"] == "cross_entropy"
    assert sweep["optimizer"] == "sgd"
    assert sweep["scheduler"] == {"name": "none"}
    assert sweep["allocation"]["runtime"] == 60
    assert sweep["confirm"] == {"seeds": 3, "top": 1, "runtime": 30}


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


def test_a_gpu_that_any_sweep_asks_for_changes_the_environment_only_where_it_decides_the_build(root: Path) -> None:
    def serves_gpus(gpus: int, **env: str) -> bool:
        given = config() | {"env": env}
        given["sweeps"]["other"] = sweep(allocation={"gpus_per_node": gpus})
        return env_arguments(Config.of(check(root, given)), root).gpu

    assert serves_gpus(1)
    assert not serves_gpus(0)
    assert not serves_gpus(1, wheels="site")
    assert not serves_gpus(1, torch_backend="cpu")


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


def test_mistakes_in_several_files(root: Path) -> None:
    base, more = root / "base.yaml", root / "more.yaml"
    base.write_text(yaml.safe_dump(config(mode="maximum", seed=-1)))
    more.write_text("sweeps: {s: {num_samples: 0, allocation: {nodes: 0}}}")
    merged = config(mode="maximum", seed=-1, num_samples=0, allocation={"nodes": 0})
    with pytest.raises(ConfigError) as caught:
        validated(merged, [base, more], root)
    assert caught.value.lines == (
        "base.yaml: sweeps.s.mode: 'maximum' is not allowed: one of max, min. Did you mean max?",
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
    assert [line.partition(" (")[0] for line in caught.value.lines] == [
        "twice.yaml: sweeps.a.seed: stands twice in one map",
        "twice.yaml: sweeps.b: stands twice in one map",
        "twice.yaml: sweeps.c.seed: -1 is not allowed: a whole number, at least 0",
        "twice.yaml: results_dir: stands twice in one map",
    ]


def test_a_key_that_stands_twice_in_the_config_of_a_module_has_the_keys_of_the_other_workflow(root: Path) -> None:
    path = root / "outer.yaml"
    path.write_text("deep:\n  part:\n    state_dir: a\n    state_dir: b\n")
    with pytest.raises(ConfigError, match=r"^outer.yaml: deep.part.state_dir: stands twice in one map \(line 3 "):
        validated(config(), [path], root, Module("m", ("deep", "part")))


def test_a_map_that_contains_itself_is_read_once(root: Path) -> None:
    path = root / "loop.yaml"
    path.write_text("sweeps: &s\n  a: {b: 1, b: 2}\n  c: *s\n")
    with pytest.raises(ConfigError, match=r"^[^\n]*b: stands twice in one map \(line 2"):
        validated(config(), [path], root)


def test_yaml_reads_off_and_on_as_booleans(root: Path) -> None:
    for value, meant in ((False, "off"), (True, "on"), ("off", "off"), ("on", "on"), ("auto", "auto")):
        assert check(root, config(fuse=value))["sweeps"]["s"]["fuse"] == meant


def test_the_config_that_shows_what_a_recipe_is_worth_is_valid() -> None:
    path = ROOT / "benchmarks" / "recipe.yaml"
    sweeps = Config.of(validated(yaml.safe_load(path.read_text()), [path], ROOT)).sweeps
    recipes = {name: sweep.training for name, sweep in sweeps.items()}
    assert recipes["without"] == Recipe()
    assert str(recipes["with"]) == "schedule onecycle, label_smoothing 0.1, augment flip and crop 4"
    assert {name: replace(sweep, training=None) for name, sweep in sweeps.items()} == dict.fromkeys(
        sweeps, replace(sweeps["with"], training=None)
    )
