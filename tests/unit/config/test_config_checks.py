from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from configs import ROOT, assert_refused, check, config, ids, lines, own, refusal
from raysweep.common.errors import ConfigError
from raysweep.config import sweep_checks
from raysweep.config.load import Module, validated


def test_the_dashboard_with_what_it_needs(root: Path) -> None:
    given = config() | {"ray": {"dashboard": True}, "env": {"requirements": "workflow/envs/dashboard.in"}}
    assert check(root, given)["ray"]["dashboard"]


@pytest.mark.parametrize(
    ("tls", "nodes", "is_refused"),
    [("on", 1, True), ("auto", 2, True), ("auto", 1, False), ("off", 2, False), (True, 1, True), (False, 2, False)],
)
def test_tls_where_the_set_up_is_older_than_its_package(
    root: Path, monkeypatch: pytest.MonkeyPatch, tls: str | bool, nodes: int, is_refused: bool
) -> None:
    given = config(allocation={"nodes": nodes}) | {"ray": {"tls": tls}}
    assert check(root, given)["ray"]["tls"] == {True: "on", False: "off"}.get(tls, tls)  # type: ignore[call-overload]
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cryptography" else find_spec(name))
    if not is_refused:
        check(root, given)
        return
    [line] = lines(root, given)
    said = f"is not allowed here: {sys.executable} lacks the package cryptography. Run `make setup`, or use off"
    assert line in {f"ray.tls: {value!r} {said}" for value in ("on", "auto")}
    [line] = lines(root, config(allocation={"jobs": 4}) | {"ray": {"tls": "off"}})
    assert re.fullmatch(
        r"sweeps\.\w+\.allocation\.jobs: 4 is not allowed here: .* lacks the package cryptography\. Run `make setup`, or use 1", line
    )


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


def test_a_requirements_file_that_cannot_be_read_is_one_line(root: Path) -> None:
    (root / "own.in").write_text("ray[default] ==\n")
    (root / "own.txt").write_text("")
    given = config(mlflow="local") | {"env": {"requirements": "own.in"}, "ray": {"dashboard": True}}
    [line] = lines(root, given)
    assert line.startswith(f"env.requirements: {root}/own.in: 'ray[default] ==' is not a requirement: ")
    assert lines(root, config() | {"env": {"requirements": "own.in"}}) == [line], "whether or not another key needs the file"


def test_an_error_of_a_check_is_not_taken_for_a_mistake_of_the_requirements(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(labels: list[str]) -> bool:
        raise ConfigError("another mistake")

    monkeypatch.setattr(sweep_checks, "grids_of", fail)
    with pytest.raises(ConfigError, match=r"^another mistake$"):
        check(root, config(points_to_evaluate=[{"lr": 0.01}]))


MISTAKES: list[tuple[dict[str, Any], str]] = [
    (
        config() | {"ray": {"dashboard": True}},
        f"ray.dashboard: True is not allowed: env.requirements, {ROOT}/workflow/envs/node.in, does not list ray[default]. Name workflow/envs/dashboard.in",
    ),
    (config() | {"ray": {"tls": "maybe"}}, "ray.tls: 'maybe' is not allowed: auto, on or off"),
    (config() | {"env": {"cache_dir": "/tmp", "wheels": "none"}}, "env.cache_dir: '/tmp' is not allowed with wheels: none"),
]


@pytest.mark.parametrize(("given", "expected"), MISTAKES, ids=ids(MISTAKES))
def test_mistakes(root: Path, given: dict[str, Any], expected: str) -> None:
    assert_refused(root, given, expected)


class TestSources:
    def given(self, **dataset: Any) -> dict[str, Any]:
        return config(dataset="pictures") | {"datasets": {"pictures": dataset}}

    @pytest.mark.parametrize("source", ["picturse", "/no/such/folder", "~/no/such/folder", "own.tar.gz", "link"])
    def test_a_source_that_does_not_exist_is_one_line(self, root: Path, source: str) -> None:
        (root / "link").symlink_to("nowhere")
        assert_refused(
            root,
            self.given(source=source),
            f"datasets.pictures.source: '{source}' does not exist. Allowed: download, synthetic, the path of CIFAR-10's .tar.gz",
        )

    @pytest.mark.parametrize("source", ["synthetic", "download", "pictures", "own.tar.gz"])
    def test_a_source_that_exists_or_is_made(self, root: Path, source: str) -> None:
        (root / "pictures").mkdir()
        (root / "own.tar.gz").touch()
        assert check(root, self.given(source=source))["datasets"]["pictures"]["source"] == source

    def test_a_function_that_makes_the_data_is_found_in_its_file(self, root: Path) -> None:
        assert check(root, self.given(source="train.py:train"))["datasets"]["pictures"]["source"] == "train.py:train"
        assert_refused(
            root,
            self.given(source="train.py:load"),
            "datasets.pictures.source: 'train.py:load' is not allowed: train.py does not define load",
        )
        assert_refused(
            root, self.given(source="gone.py:load"), "datasets.pictures.source: 'gone.py:load' is not allowed: there is no file gone.py"
        )

    def test_a_table_and_nothing_else_has_a_target(self, root: Path) -> None:
        (root / "own.csv").touch()
        assert check(root, self.given(source="own.csv", target="price"))["datasets"]["pictures"]["target"] == "price"
        assert_refused(root, self.given(source="own.csv"), "datasets.pictures.target: missing: a table needs the name of the column")
        line = (
            "datasets.pictures.target: 'price' is not allowed: it is for a table (.csv or .parquet), which 'synthetic' is not. Leave it out"
        )
        assert_refused(root, self.given(source="synthetic", target="price"), line)

    def test_rows_are_divided_in_one_way(self, root: Path) -> None:
        folds = {"validation": {"folds": 3}}
        divided = check(root, self.given(source="synthetic", **folds))
        assert divided["datasets"]["pictures"]["validation"] == {"folds": 3}
        (root / "own.csv").touch()
        for values, line in (
            (
                {"source": "synthetic", "group": "site"},
                "group: 'site' is not allowed with source synthetic: it is for arrays, tables and functions",
            ),
            ({"source": "synthetic", "split": "time"}, "split: 'time' is not allowed with source synthetic"),
            ({"source": "own.csv", "target": "price", "group": "price"}, "group: 'price' is not allowed: it is the target"),
            (
                {"source": "own.csv", "target": "price", "group": "site", "split": "time"},
                "split: 'time' is not allowed beside group 'site'",
            ),
            ({"source": "own.csv", "target": "price", "split": "time", **folds}, "split: 'time' is not allowed beside validation.folds"),
            (
                {"source": "synthetic", "validation_fraction": 0.2, **folds},
                "validation_fraction: 0.2 is not allowed beside validation.folds",
            ),
            ({"source": "synthetic", "validation": {"folds": 1}}, "validation.folds: 1 is not allowed: a whole number, at least 2"),
            ({"source": "synthetic", "validation": {}}, "validation.folds: missing"),
            ({"source": "synthetic", "validation": {"fold": 5}}, "validation.fold: unknown key. Did you mean folds?"),
        ):
            assert_refused(root, self.given(**values), f"datasets.pictures.{line}")

    def test_a_set_that_was_staged_or_that_no_sweep_uses_needs_no_source(self, root: Path) -> None:
        unused = own() | {"datasets": {"pictures": {"source": "gone"}}}
        assert check(root, unused)["datasets"]["pictures"]["source"] == "gone"
        manifest = root / "resources/data/pictures/manifest.yaml"
        manifest.parent.mkdir(parents=True)
        manifest.touch()
        assert check(root, self.given(source="gone"))["datasets"]["pictures"]["source"] == "gone"

    def test_the_staged_set_of_a_module_lies_below_the_prefix(self, root: Path) -> None:
        def staged(folder: str) -> dict[str, Any]:
            return validated(self.given(source="gone"), [], root, Module("m", None), lambda path: Path(folder, path))

        manifest = root / "theirs/resources/data/pictures/manifest.yaml"
        manifest.parent.mkdir(parents=True)
        manifest.touch()
        assert staged("theirs")["datasets"]["pictures"]["source"] == "gone"
        with pytest.raises(ConfigError, match=r"datasets\.pictures\.source: 'gone' does not exist"):
            staged(".")

    def test_a_mistake_of_one_set_does_not_hide_that_of_another(self, root: Path) -> None:
        given = self.given(source="gone")
        given["datasets"]["other"] = {"seed": -1, "soruce": "gone"}
        assert [line.split(":")[0] for line in lines(root, given)] == [
            "datasets.pictures.source",
            "datasets.other.seed",
            "datasets.other.soruce",
        ]

    def test_other_mistakes_are_reported_with_it(self, root: Path) -> None:
        given = self.given(source="gone")
        given["sweeps"]["s"]["max_epochs"] = "many"
        given["sweeps"]["t"] = 3
        assert [line.split(":")[0] for line in lines(root, given)] == ["datasets.pictures.source", "sweeps.s.max_epochs", "sweeps.t"]
