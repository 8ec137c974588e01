"""A text of the config that a shell or Snakemake could take for more is refused in one line, or arrives as it is; it is never run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake_interface_executor_plugins import utils

from metacharacters import TEXTS, given, stand_in, texts_of_the_schema
from project import Project as Checkout
from raysweep.common.errors import ConfigError
from raysweep.config.load import validated
from raysweep.slurm.snakemake_private import quote_words
from sweeping import SCRIPTS, Project, sweep_of

# Keys that take any text but one that begins with a hyphen, that has the curly brackets of Snakemake's wildcards, or that is more than a line.
FOLDERS = [("results_dir",), ("state_dir",), ("resources_dir",)]
FREE = [
    *FOLDERS,
    *(("env", key) for key in ("python", "requirements", "wheels", "cache_dir")),
    ("datasets", "*", "source"),
    ("sweeps", "*", "trainable"),
]
METRIC = ("sweeps", "*", "metric")  # takes any text of one line, because no command contains the name of the metric
HARMLESS = {name: text for name, text in TEXTS.items() if not text.startswith("-") and not {"{", "\n"} & set(text)}
each_text = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
each_harmless = pytest.mark.parametrize("text", HARMLESS.values(), ids=HARMLESS)


def value_of(key: tuple[str, ...], text: str) -> Any:
    """The text, as far as the key's own form leaves room for it."""
    return {
        ("env", "requirements"): f"{text}.in",
        ("env", "cache_dir"): f"/{text}",
        ("env", "modules", "*"): [text],
        ("sweeps", "*", "model"): f"{text}.py:train",
        ("sweeps", "*", "trainable"): f"{text}.py:train",
    }.get(key, f"{text} {key[0]}" if key in FOLDERS else text)


def config_with(root: Path, text: str, *keys: tuple[str, ...]) -> dict[str, Any]:
    """A config that has the text in these keys, and the files that they name."""
    for name in ("train.py", f"{text}.py"):
        (root / name).write_text("def train(config): pass\n")
    for name in ("own.in", "own.txt", f"{text}.in", f"{text}.txt"):
        (root / name).touch()
    if ("datasets", "*", "source") in keys:
        (root / text).touch()
    sweep = {"dataset": "d", "trainable": "train.py:train", "search_space": {"lr": 0.1, "batch_size": 2}, "metric": "accuracy"}
    config: dict[str, Any] = {"datasets": {"d": {"source": "synthetic"}}, "env": {"requirements": "own.in"}, "sweeps": {"s": sweep}}
    for key in keys:
        names = {("datasets", "*"): "d", ("sweeps", "*"): "s"}
        *folders, last = [names.get(key[:end], key[end - 1]) for end in range(1, len(key) + 1) if key[end - 1] != "*" or key[:end] in names]
        level = config
        for name in folders:
            level = level.setdefault(name, {})
        level[last] = value_of(key, text)
        if last == "model":
            del sweep["trainable"]
    return config


def refusal(root: Path, config: dict[str, Any]) -> str | None:
    """What is said against a config; None where it is taken."""
    path = root / "c.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    try:
        validated(yaml.safe_load(path.read_text()), [path], root)
    except ConfigError as error:
        return str(error)
    return None


@each_text
def test_every_key_refuses_it_but_those_that_take_any_text(tmp_path: Path, text: str) -> None:
    """By the schema, so that a new key is part of it."""
    keys = texts_of_the_schema()
    free = [*FREE, ("sweeps", "*", "model")]
    assert set(keys) >= set(free)
    for number, key in enumerate(keys):
        root = tmp_path / str(number)  # a folder for each key, because the file that one key names is none for another
        root.mkdir()
        said = refusal(root, config_with(root, text, key))
        is_taken = key in free and (text in HARMLESS.values() or (key[-1] == "cache_dir" and text.startswith("-")))
        is_taken = is_taken or (key == METRIC and "\n" not in text)
        assert (said is None) == is_taken, (key, said)
        assert said is None or len(said.splitlines()) == 1


@each_text
def test_every_name_refuses_it(tmp_path: Path, text: str) -> None:
    plain = config_with(tmp_path, text)
    sweep = plain["sweeps"]["s"]
    for config in (
        plain | {"sweeps": {text: sweep}},
        plain | {"datasets": {text: {}}},
        plain | {text: {}},
        *(plain | {"sweeps": {"s": sweep | {key: value}}} for key in ("search_algorithm", "scheduler") for value in (text, {"name": text})),
        plain | {"sweeps": {"s": sweep | {"scheduler": {"name": "asha", text: 1}}}},
        plain | {"sweeps": {"s": sweep | {"search_space": {"x": {"uniform": [0, text]}}}}},
        plain | {"sweeps": {"s": sweep | {"trainable": f"train.py:{text}"}}},
        plain | {"sweeps": {"s": sweep | {"trainable": f"{text}:train"}}},
    ):
        said = refusal(tmp_path, config)
        assert said is not None, config
        assert len(said.splitlines()) == 1


@each_text
def test_a_refusal_is_lines_of_snakemake_and_nothing_is_run(checkout: Checkout, text: str) -> None:
    checkout.write_config(config_with(checkout.root, text) | {"sweeps": {text: {}}})
    done = checkout.snakemake("--cores", "1")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines
    assert [line for line in lines if not line.startswith("Error: config/config.yaml: sweeps.")] == []
    assert not list(checkout.root.parent.rglob("pwned"))


@each_harmless
def test_what_any_text_may_stand_in_reaches_the_stages_as_one_word(checkout: Checkout, text: str) -> None:
    """All rules run as they are, in a copy of the project whose scripts only write down their arguments."""
    stand_in(checkout.root)
    checkout.write_config(config_with(checkout.root, text, *FREE))
    done = checkout.snakemake("--cores", "1")
    assert done.returncode == 0, done.stderr
    assert not list(checkout.root.parent.rglob("pwned"))
    calls = given(checkout.root)
    assert len(calls) == 6
    words = [word for call in calls for word in call]
    for key in FREE:
        value = value_of(key, text)
        if key in FOLDERS:
            assert any(word.startswith(f"{value}/") for word in words), key
            assert (checkout.root / value).is_dir()
        elif key[-1] == "cache_dir":  # the stages of a sweep read it in their config
            path = checkout.root / value_of(("state_dir",), text) / ".config" / "s.yaml"
            assert yaml.safe_load(path.read_text())["env"]["cache_dir"] == value
        else:
            assert value in words, key


@pytest.mark.parametrize("text", [HARMLESS["both"], HARMLESS["a pipe"]], ids=["both", "a pipe"])
@pytest.mark.parametrize("key", [("datasets", "*", "source"), ("env", "python"), ("env", "wheels")], ids=".".join)
def test_the_scripts_themselves_find_no_such_thing_and_run_nothing(checkout: Checkout, key: tuple[str, ...], text: str) -> None:
    checkout.write_config(config_with(checkout.root, text, key))
    done = checkout.snakemake("--cores", "1", "--until", "stage_data" if key[0] == "datasets" else "install_env")
    assert done.returncode == 1
    assert names_it(done.stderr, text)
    assert not list(checkout.root.parent.rglob("pwned"))


@each_harmless
def test_neither_does_the_shell_that_loads_modules(tmp_path: Path, text: str) -> None:
    """The one shell of the scripts: a login shell, since a site's `module` is a function of it. This one is made up."""
    (tmp_path / ".bash_profile").write_text('module() { printf "%s\\n" "$*" >> loaded; }\n')
    (tmp_path / "own.in").touch()
    (tmp_path / "own.txt").touch()
    argv = [
        sys.executable,
        SCRIPTS / "build_env.py",
        "--python",
        text,
        "--wheels",
        "none",
        "--requirements",
        "own.in",
        "--modules",
        "a/1",
        "b",
    ]
    argv += ["--output-dir", "env", "--log", "log"]
    done = subprocess.run(argv, cwd=tmp_path, env=os.environ | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert names_it(done.stderr, text)
    assert set((tmp_path / "loaded").read_text().splitlines()) == {"load a/1 b"}
    assert not list(tmp_path.rglob("pwned"))


@each_text
def test_snakemake_quotes_it_for_the_shell_of_a_job(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """tests/slurm/test_metacharacters_on_slurm.py sends such texts through sbatch."""
    monkeypatch.setattr(utils, "format_cli_value", utils.format_cli_value)  # which is so put back at the end
    quote_words()
    for value in (text, f"'{text}'", f"it's {text}"):
        assert shlex.split(utils.format_cli_arg("--config", value)) == ["--config", value]
        assert shlex.split(utils.format_cli_arg("--wait-for-files", [value, Path(value)])) == ["--wait-for-files", value, value]


def names_it(said: str, text: str) -> bool:
    """Whether there is one line of ours, which names the text."""
    [line] = {line for line in said.splitlines() if line.startswith("Error: ") and "s:" not in line[:9]}
    return "bug of the workflow" not in line and (text in line or repr(text)[1:-1] in line)


def test_keys_and_values_of_a_search_space_reach_trials_and_results_as_they_are(project: Project) -> None:
    """A real sweep. Its trainable says what it got; a slash alone is not allowed in a key, where it stands for nesting."""
    texts = [text for text in TEXTS.values() if "/" not in text]
    project.write(
        "odd.py", "import json\nfrom ray import tune\n\ndef train(config):\n    tune.report({'odd.score-/x_': len(json.dumps(config))})\n"
    )
    space = {text: {"choice": [text]} for text in texts} | {"nested": {text: text for text in texts}}
    project.configure(sweeps={"s": sweep_of("train", search_space=space, metric="odd.score-/x_") | {"trainable": "odd.py:train"}})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    expected = {text: text for text in texts} | {"nested": {text: text for text in texts}}
    assert project.result("s", "best.yaml")["config"] == expected
    assert project.result("s", "best.yaml")["metric"] == {"name": "odd.score-/x_", "value": len(json.dumps(expected))} | {
        key: value for key, value in project.result("s", "best.yaml")["metric"].items() if key not in ("name", "value")
    }
    [row] = project.trials("s")
    assert {key: row[f"config/{key}"] for key in texts} == {text: text for text in texts}
    assert not list(project.folder.parent.rglob("pwned"))
