"""What YAML 1.1 reads in another way than the user wrote it is refused, and what is clear stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import lines
from raysweep.common.errors import ConfigError
from raysweep.config.load import Module, validated

SWEEP = "dataset: synthetic, model: 'raysweep.models.lenet:LeNet', metric: accuracy"
SPACE = "search_space: {lr: 0.1, batch_size: 2%s}"


def text_of(changes: str = "", space: str = "", top: str = "") -> str:
    """Return a config as text, with further keys in the sweep, in its search space and at the top."""
    sweep = f"{{{SWEEP}, {SPACE % (space and f', {space}')}{changes and f', {changes}'}}}"
    return f"datasets: {{synthetic: {{source: synthetic}}}}\n{top}\nsweeps: {{s: {sweep}}}\n"


def read(root: Path, text: str) -> dict[str, Any]:
    path = root / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return validated(yaml.load(text, Loader=yaml.FullLoader), [path], root)


def refused(root: Path, text: str) -> str:
    """Return the only line of a refusal, without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        read(root, text)
    [line] = caught.value.lines
    assert line.startswith("config.yaml: ")
    return line.removeprefix("config.yaml: ")


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        *((word, "false") for word in ("no", "No", "NO", "off", "Off", "OFF")),
        *((word, "true") for word in ("yes", "Yes", "YES", "on", "On", "ON")),
        ("010", "8"),
        ("00", "0"),
        ("-017", "-15"),
        ("0_7", "7"),
        ("1:30", "90"),
        ("190:20:30", "685230"),
        ("-1:30", "-90"),
        ("1:30.5", "90.5"),
        ("0x1F", "31"),
        ("0b101", "5"),
        ("1_000", "1000"),
        ("1_0.5", "10.5"),
    ],
)
@pytest.mark.parametrize(
    ("space", "key"),
    [
        ("x: {choice: [a, %s]}", "x.choice.1"),
        ("x: %s", "x"),
        ("x: {y: {grid: [%s]}}", "x.y.grid.0"),
        ("x: {choice: [[%s]]}", "x.choice.0.0"),
    ],
)
def test_words_and_numbers_in_a_search_space(root: Path, word: str, meaning: str, space: str, key: str) -> None:
    assert refused(root, text_of(space=space % word)) == (
        f"sweeps.s.search_space.{key}: {word} is not allowed: YAML reads {word} as {meaning}. Write '{word}' with the quotes, or {meaning}"
    )
    [space_read] = [sweep["search_space"] for sweep in read(root, text_of(space=space % f"'{word}'"))["sweeps"].values()]
    assert repr(word) in repr(space_read["x"]), "text in quotes stays text"


@pytest.mark.parametrize("day", ["2024-01-01", "2024-01-01 12:00:00", "2024-01-01T12:00:00Z"])
def test_dates(root: Path, day: str) -> None:
    expected = f"{day} is not allowed: YAML reads {day} as a date. Write '{day}' with the quotes"
    assert refused(root, text_of(space=f"x: {{choice: [{day}, b]}}")) == f"sweeps.s.search_space.x.choice.0: {expected}"
    assert refused(root, text_of(top=f"results_dir: {day}")) == f"results_dir: {expected} if text is meant. Allowed: text that is not empty"


@pytest.mark.parametrize(
    "plain", ["true", "True", "FALSE", "1", "0", "-1", "+1", "10", "1.0", "1e-4", "0.5", ".5", "null", "~", "a:b", "1-2", "x_1", "08"]
)
def test_what_is_clear(root: Path, plain: str) -> None:
    assert read(root, text_of(space=f"x: {{choice: [{plain}]}}"))["sweeps"]["s"]["search_space"]["x"]


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ("fuse: off", "fuse", "off"),
        ("fuse: On", "fuse", "on"),
        ("tensorboard: yes", "tensorboard", True),
        ("resume: no", "resume", False),
        ("seed: 0x10", "seed", 16),
        ("seed: 0b11", "seed", 3),
        ("num_samples: 1_000", "num_samples", 1000),
        (
            "search_algorithm: {name: optuna, multivariate: off}",
            "search_algorithm",
            {"name": "optuna", "n_startup_trials": 10, "multivariate": False},
        ),
    ],
)
def test_where_the_schema_expects_a_boolean_or_a_number(root: Path, changes: str, key: str, value: Any) -> None:
    assert read(root, text_of(changes))["sweeps"]["s"][key] == value
    assert read(root, text_of(top="ray: {dashboard: off, tls: off}"))["ray"] == {"dashboard": False, "tls": "off"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ("seed: 010", "seed: 010 is not allowed: YAML reads 010 as 8. Allowed: a whole number, at least 0"),
        ("allocation: {runtime: 1:30}", "allocation.runtime: 1:30 is not allowed: YAML reads 1:30 as 90. Allowed: minutes above 0, or a time such"),
        ("time_budget: 12:00:00", "time_budget: 12:00:00 is not allowed: YAML reads 12:00:00 as 43200. Allowed: minutes above 0, a time"),
        ("wandb: off", "wandb: off is not allowed: YAML reads off as false. Write 'off' with the quotes if text is meant. Allowed: a project's name"),
        ("mode: no", "mode: no is not allowed: YAML reads no as false. Allowed: one of max, min"),
        ("num_samples: yes", "num_samples: yes is not allowed: YAML reads yes as true. Allowed: a whole number, at least 1"),
        ("scheduler: {name: asha, grace_period: 010}", "scheduler.grace_period: 010 is not allowed: YAML reads 010 as 8. Allowed: a whole number, at"),
        ("points_to_evaluate: [{lr: 1:30}]", "points_to_evaluate.0.lr: 1:30 is not allowed: YAML reads 1:30 as 90. Write '1:30' with the quotes, or 90"),
    ],
)  # fmt: skip
def test_where_the_schema_expects_something_else(root: Path, changes: str, line: str) -> None:
    assert refused(root, text_of(changes)).startswith(f"sweeps.s.{line}")


@pytest.mark.parametrize(("name", "meaning"), [("yes", "true"), ("off", "false"), ("010", "8"), ("1:30", "90"), ("2024-01-01", "a date")])
def test_names_that_yaml_reads_as_something_else(root: Path, name: str, meaning: str) -> None:
    expected = f"the key {name} is not allowed: YAML reads {name} as {meaning}. Write '{name}' with the quotes"
    assert refused(root, text_of().replace("{s: ", f"{{{name}: ")).endswith(expected)
    assert refused(root, text_of(space=f"{name}: 1")).endswith(expected)
    assert list(read(root, text_of().replace("{s: ", "{'yes': "))["sweeps"]) == ["yes"]


@pytest.mark.parametrize("name", ["12", "1.5", "true", "null"])
def test_names_that_are_no_text_say_to_use_quotes(root: Path, name: str) -> None:
    value = yaml.safe_load(name)
    assert refused(root, text_of().replace("{s: ", f"{{{name}: ")).endswith(f"Write '{name}' with the quotes, because a name is text")
    assert refused(root, text_of(space=f"{name}: 1")).endswith(
        f"the key {value!r} is not allowed: a name is text, so write '{name}' with the quotes"
    )


def test_a_mistake_is_in_the_file_that_has_it_and_beside_other_mistakes(root: Path) -> None:
    base, more = root / "base.yaml", root / "more.yaml"
    base.write_text(text_of("seed: -1", space="x: {choice: [no, se]}"))
    more.write_text("sweeps: {s: {num_samples: 010}}")
    merged = yaml.safe_load(base.read_text())
    merged["sweeps"]["s"]["num_samples"] = 8
    with pytest.raises(ConfigError) as caught:
        validated(merged, [base, more], root)
    assert [line.partition(" is not")[0] for line in caught.value.lines] == [
        "base.yaml: sweeps.s.search_space.x.choice.0: no",
        "base.yaml: sweeps.s.seed: -1",
        "more.yaml: sweeps.s.num_samples: 010",
    ]


def test_values_below_anchors_and_merge_keys(root: Path) -> None:
    text = f"datasets: {{synthetic: {{source: synthetic}}}}\nsweeps:\n  a: &a {{{SWEEP}, {SPACE % ', x: no'}}}\n  b: {{<<: *a, seed: 1}}\n"
    assert refused(root, text).startswith("sweeps.a.search_space.x: no is not allowed"), "the anchor is checked once"
    text = f"datasets: {{synthetic: {{source: synthetic}}}}\nsweeps:\n  b: {{<<: {{seed: 010}}, {SWEEP}, {SPACE % ''}}}\n"
    assert refused(root, text).startswith("sweeps.b.seed: 010 is not allowed")


@pytest.mark.parametrize("text", ["a: &a [1, *a]", "a: &a {b: {choice: [*a]}}", "a: {choice: &a [[*a]]}"])
def test_what_contains_itself_is_one_line(root: Path, text: str) -> None:
    line = refused(root, text_of("seed: -1").replace("lr: 0.1", text))
    assert "search_space.a" in line
    assert line.endswith("a map or list that contains itself is not allowed. Allowed: an alias (*name) outside of the anchor (&name)")


def test_an_anchor_that_is_used_several_times(root: Path) -> None:
    space = read(root, text_of(space="a: &a {choice: [1, 2]}, b: *a, c: {d: *a}"))["sweeps"]["s"]["search_space"]
    assert space["a"] == space["b"] == space["c"]["d"]


class TestConfigArguments:
    """Snakemake reads all values below a map of `--config` as text."""

    def merged(self, root: Path, *entries: str, module: Module | None = None) -> dict[str, Any]:
        """Return the validated config of a file and of the entries of `--config`, which Snakemake reads with the loader of text."""
        path = root / "config.yaml"
        path.write_text(text_of("fuse: auto") if module is None else "")
        config = yaml.safe_load(text_of("fuse: auto"))
        pairs = tuple((key, text) for key, _, text in (entry.partition("=") for entry in entries))
        for key, text in pairs:
            value = yaml.load(text, Loader=yaml.BaseLoader)
            if key == "sweeps":
                for name, changes in value.items():
                    config["sweeps"].setdefault(name, {}).update(changes)
        return validated(config, [path], root, module, config_args=pairs)

    def test_values_mean_what_they_mean_in_a_file(self, root: Path) -> None:
        entry = (
            "sweeps={s: {num_samples: 3, fuse: off, tensorboard: true, time_budget: null, "
            "search_space: {lr: 1e-3, batch_size: 4, x: {choice: [1, 1.0, true, se, null, '12']}}}}"
        )
        sweep = self.merged(root, entry)["sweeps"]["s"]
        assert (sweep["num_samples"], sweep["fuse"], sweep["tensorboard"], sweep["time_budget"]) == (3, "off", True, None)
        assert repr(sweep["search_space"]) == repr({"lr": 0.001, "batch_size": 4, "x": {"choice": [1, 1.0, True, "se", None, "12"]}})
        assert sweep["metric"] == "accuracy", "of the file"

    def test_a_mistake_names_the_option(self, root: Path) -> None:
        for entry, line in (
            ("sweeps={s: {num_samples: 0}}", "sweeps.s.num_samples: 0 is not allowed: a whole number"),
            ("sweeps={s: {seed: 010}}", "sweeps.s.seed: 010 is not allowed: YAML reads 010 as 8."),
            ("sweeps={s: {search_space: {lr: no, batch_size: 2}}}", "sweeps.s.search_space.lr: no is not allowed: YAML reads no as false."),
            ("sweeps={s: {wandb: 2024-13-77}}", "sweeps.s.wandb: 2024-13-77 is not allowed: YAML reads 2024-13-77 as a date."),
        ):
            with pytest.raises(ConfigError) as caught:
                self.merged(root, entry)
            assert caught.value.lines[0].startswith(f"--config: {line}")
            assert len(caught.value.lines) == 1

    def test_the_key_of_a_module(self, root: Path) -> None:
        module = Module("m", ("part",))
        given = self.merged(root, "part={sweeps: {s: {num_samples: 3}}}", "other={sweeps: {s: {num_samples: 4}}}", module=module)
        assert given["sweeps"]["s"]["num_samples"] == 3
        given = self.merged(root, "x={s: {num_samples: 4}}", module=Module("m", None))
        assert given["sweeps"]["s"]["num_samples"] == 1, "no option contains the config of this module"


def test_the_comparison_of_sweeps_is_no_name(root: Path) -> None:
    for name in ("comparison.html", "Comparison.HTML"):
        config = yaml.safe_load(text_of().replace("{s: ", f"{{{name}: "))
        [line] = lines(root, config)
        assert line.endswith(f"the name {name!r} is not allowed: the results have a file of this name, in which sweeps are compared")
    assert lines(root, yaml.safe_load(text_of("seed: -1").replace("{s: ", "{all: "))) == [
        "sweeps.all.seed: -1 is not allowed: a whole number, at least 0"
    ]
