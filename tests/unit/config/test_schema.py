from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from configs import ROOT, assert_refused, check, config, ids, lines, own, refusal, sweep
from raysweep.config.schema import PATH_TO_SCHEMA, load_schema


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


def test_an_unknown_key_leaves_the_other_values_of_its_sweep_to_the_schema(root: Path) -> None:
    given = config(num_sample=5, mode="maximum", metric=None)
    assert [line.partition(": ")[0] for line in lines(root, given)] == ["sweeps.s.num_sample", "sweeps.s.mode", "sweeps.s.metric"]


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (config(num_samples=True), "num_samples: True is not allowed: a whole number, at least 1"),
    (config(num_samples=1.5), "num_samples: 1.5 is not allowed: a whole number, at least 1"),
    (config(num_samples=float("nan")), "num_samples: nan is not allowed: a whole number, at least 1"),
    (config(seed=-1), "seed: -1 is not allowed: a whole number, at least 0"),
    (config(metric=""), "metric: '' is not allowed: the name of a metric as the trials report it"),
    (config(metric="two\nlines"), "metric: 'two\\nlines' is not allowed: the name of a metric as the trials report it"),
    (config(metric=1), "metric: 1 is not allowed: the name of a metric as the trials report it"),
    (config(scheduler=None) | {"x": 1}, "x: unknown key. Allowed: results_dir, "),
    (config(scheduler=5), "scheduler: 5 is not allowed: a name, or {name: …, options}"),
    (config(scheduler={"grace_period": 1}), "scheduler.name: missing. Allowed: one of none, asha, hyperband, median, pbt"),
    (config(scheduler={"name": ["asha"]}), "scheduler.name: ['asha'] is not allowed: one of none, asha, hyperband, median, pbt"),
    (config(scheduler={"name": "asha", 3: 1}), "scheduler.3: unknown option of asha. Allowed: grace_period, "),
    (config(scheduler={"name": "none", "grace_period": 1}), "scheduler.grace_period: unknown option of none. Allowed: no option"),
    (
        config(scheduler={"name": "asha", "brackets": 1}),
        "scheduler.brackets: unknown option of asha. Allowed: grace_period, reduction_factor",
    ),
    (config(scheduler={"name": "asha", "reduction_factor": 1}), "scheduler.reduction_factor: 1 is not allowed: a number, above 1"),
    (config(points_to_evaluate=[3]), "points_to_evaluate.0: 3 is not allowed: a map"),
    (config(search_algorithm="bayes"), "search_algorithm.name: 'bayes' is not allowed: one of random, grid, optuna"),
    (
        config(search_algorithm={"name": "optuna", "sampler": "tpo"}),
        "search_algorithm.sampler: 'tpo' is not allowed: tpe, gp, cmaes, qmc, nsga2, or a sampler class",
    ),
    (config(search_algorithm={"name": "optuna", "sampler": ["gp"]}), "search_algorithm.sampler: ['gp'] is not allowed: tpe, gp,"),
    (
        config(search_algorithm={"name": "random", "sampler": "gp"}),
        "search_algorithm.sampler: unknown option of random. Allowed: no option",
    ),
    (
        config(search_algorithm={"name": "optuna", "sampler": "nsga2", "popsize": 8}),
        "search_algorithm.popsize: unknown option of optuna nsga2. Did you mean population_size? Allowed: sampler, population_size",
    ),
    (config(search_algorithm={"name": "optuna", "sampler": "nsga2", "population_size": 1}), "population_size: 1 is not allowed: a whole"),
    (config(search_algorithm={"name": "optuna gp"}), "search_algorithm.name: 'optuna gp' is not allowed: one of random, grid, optuna"),
    (config(search_space={}), "search_space: {} is not allowed: a map that is not empty"),
    (config(keep_checkpoints="most"), "keep_checkpoints: 'most' is not allowed: a whole number, at least 1, or all"),
    (config(trial_resources={"cpu": 0}), "trial_resources.cpu: 0 is not allowed: a number, above 0"),
    (config(trial_resources={"cpu": float("nan")}), "trial_resources.cpu: nan is not allowed: a number, above 0"),
    (config(trial_resources={"gpu": -1}), "trial_resources.gpu: -1 is not allowed: a number of at least 0"),
    *[
        (
            config(allocation={"gpus_per_node": 1, "gpu_type": gpu_type}),
            f"allocation.gpu_type: {gpu_type!r} is not allowed: a name as `sinfo -o %G`",
        )
        for gpu_type in ("a100:2", "a100 --wrap=x", "a100;id", "$(id)", "a,b", "--exclusive", "", "a100\n", "a'b", 7)
    ],
    (config(fuse="maybe"), "fuse: 'maybe' is not allowed: auto, on or off"),
    (config() | {"env": {"cache_dir": "cache"}}, "env.cache_dir: 'cache' is not allowed: an absolute path, or null"),
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


@pytest.mark.parametrize(("given", "expected"), MISTAKES, ids=ids(MISTAKES))
def test_mistakes(root: Path, given: dict[str, Any], expected: str) -> None:
    assert_refused(root, given, expected)


FILES = [*sorted((ROOT / "config").glob("*.yaml")), *sorted((ROOT / "examples").glob("*/config.yaml"))]
FILES.remove(PATH_TO_SCHEMA)


def plain_mistakes(given: Any) -> list[str]:
    """Return what an editor shows, which knows JSON Schema and nothing of this package."""
    return [error.message for error in jsonschema.Draft202012Validator(load_schema()).iter_errors(given)]


def test_the_schema_is_a_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(load_schema())


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_an_editor_has_the_schema_of_a_file_and_shows_no_mistake(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    begin, _, relative = text.splitlines()[0].partition("=")
    assert begin == "# yaml-language-server: $schema"
    assert (path.parent / relative).resolve() == PATH_TO_SCHEMA
    assert plain_mistakes(yaml.safe_load(text)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduler": "asha", "search_algorithm": "optuna"},
        {"search_algorithm": {"name": "optuna", "sampler": "nsga2", "population_size": 10}},
        {"scheduler": {"name": "asha", "grace_period": 2}, "search_algorithm": "mine.py:Search"},
        *({"fuse": value} for value in ("auto", "on", "off", True, False)),
        {"time_budget": "1d12h", "trial_timeout": None, "allocation": {"runtime": 0.5}, "trial_resources": {"gpu": "auto"}},
        {"mlflow": "local", "wandb": None, "stop": {"loss": {"at_most": 0.1}}, "points_to_evaluate": [{"lr": 0.01}]},
    ],
)
def test_an_editor_shows_no_mistake_in_what_the_workflow_allows(changes: dict[str, Any]) -> None:
    assert plain_mistakes(config(**changes)) == []


def test_an_editor_shows_mistakes() -> None:
    assert len(plain_mistakes(config(num_sample=1, mode="maximum", scheduler=5))) == 3


def test_a_config_that_was_validated_is_a_valid_config(root: Path) -> None:
    assert plain_mistakes(check(root, config(scheduler="asha", fuse=True))) == []
