"""The workflow as a module of another: an outer Snakefile with a config of its own, in a folder in which a clone lies."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import project as checkouts
import sweeping
from project import Project

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "as-a-module.md"
CONFIG: dict[str, Any] = {
    "datasets": {"pictures": {"source": "synthetic"}},
    "sweeps": {
        "mine": {"trainable": "train.py:train", "search_space": {"x": {"uniform": [0, 1]}}, "metric": "score"},
        "other": {
            "dataset": "pictures",
            "model": "raysweep.models.lenet:LeNet",
            "search_space": {"lr": 0.1, "batch_size": 8},
            "metric": "accuracy",
        },
    },
}
MODULE = """
module {name}:
    snakefile: "raysweep/Snakefile"
    config: {config}
    prefix: "{prefix}"
use rule * from {name} as {name}_*
"""


def documented() -> dict[str, str]:
    """The files of the document's example: name → text."""
    return dict(re.findall(r"(?ms)`(\S+)`:\n\n```\w+\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8")))


@pytest.fixture
def outer(tmp_path: Path) -> Project:
    """A folder with a clone in it, and a config in which that of the sweeps is a part."""
    outer = Project(tmp_path / "an outer workflow")
    checkouts.copy_to(outer.root / "raysweep")
    outer.write("train.py", "def train(config):\n    pass\n")
    outer.write_config({"title": "A paper", "tuning": CONFIG}, "config.yaml")
    return outer


def write_snakefile(outer: Project, *modules: str, rules: str = "") -> None:
    outer.write("Snakefile", 'configfile: "config.yaml"\n' + "".join(modules) + rules)


def module(name: str = "tuning", config: str = 'config["tuning"]', prefix: str = "tuning") -> str:
    return MODULE.format(name=name, config=config, prefix=prefix)


def rule(name: str, *inputs: str) -> str:
    """One of the outer workflow's own, which runs again each time."""
    return f"rule {name}:\n    input: {list(inputs or ['tuning/results/mine/best.yaml'])}\n"


def dry_run(outer: Project, *arguments: str) -> str:
    before = outer.files()
    done = outer.snakemake("--dry-run", "--printshellcmds", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert outer.files() == before, "a dry run makes no file"
    return done.stdout + done.stderr


def jobs(said: str) -> list[str]:
    """The jobs that a dry run names: rule, or rule with its sweep or data set, sorted."""
    blocks = re.split(r"(?m)^(?=(?:local)?rule )", said)[1:]
    found = []
    for block in blocks:
        rule, wildcard = re.match(r"(?:local)?rule (\w+)", block), re.search(r"(?m)^    wildcards: \w+=(.*)$", block)
        assert rule is not None
        found.append(f"{rule[1]} {wildcard[1]}" if wildcard else rule[1])
    return sorted(found)


def refusal(outer: Project, *arguments: str) -> str:
    done = outer.snakemake("--dry-run", *arguments)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]


def test_a_whole_sweep_lies_below_the_prefix(outer: Project) -> None:
    write_snakefile(outer, module(), rules=rule("paper", "tuning/results/mine/report.html"))
    said = dry_run(outer, "paper")
    stages = ["tuning_build_env mine", "tuning_confirm mine", "tuning_install_env", "tuning_report mine", "tuning_run_sweep mine"]
    assert jobs(said) == ["paper", *stages]
    own = {"train.py", "raysweep/workflow/envs/node.in,", "raysweep/workflow/envs/node.txt"}
    for kind in ("input", "output", "log"):
        for line in re.findall(rf"(?m)^    {kind}: (.*)$", said):
            assert all(path.startswith("tuning/") or path in own for path in line.split(" ")), line
    options = re.findall(r" --(?:config|env-dir|output-dir|record|output|log|journal|figures-dir) (\S+)", said)
    assert len(options) > 15
    assert all(path.startswith("tuning/") for path in options), options
    assert "--config tuning/state/.config/mine.yaml" in said
    assert "--requirements raysweep/workflow/envs/node.in" in said, "that of the clone"


def test_the_page_that_compares_several_sweeps_finds_them(outer: Project) -> None:
    write_snakefile(outer, module())
    assert "--results-dir tuning/results --state-dir tuning/state --output tuning/results/comparison.html" in dry_run(outer)


def test_prefixes_may_be_replaced_instead(outer: Project) -> None:
    write_snakefile(outer, module().replace('prefix: "tuning"', 'replace_prefix: {"results/": "found/", "state/": "kept/"}'))
    assert "--results-dir found --state-dir kept --output found/comparison.html" in dry_run(outer)


@pytest.mark.parametrize(("rules_before", "expected"), [(rule("paper"), "paper"), ("", "tuning_all")])
def test_without_a_target_the_first_rule_is_run_where_the_outer_workflow_has_one(outer: Project, rules_before: str, expected: str) -> None:
    write_snakefile(outer, rules_before, module(), rules=rule("last"))
    found = jobs(dry_run(outer))
    assert expected in found
    assert not ({"paper", "last", "tuning_all"} - {expected}) & set(found)


def test_two_modules_have_nothing_in_common(outer: Project) -> None:
    second = '{**config["tuning"], "datasets": {}, "sweeps": {"third": config["tuning"]["sweeps"]["mine"]}}'
    both = rule("both", "a/results/comparison.html", "b/c/results/third/report.html")
    write_snakefile(outer, module("one", prefix="a"), module("two", second, "b/c"), rules=both)
    of_one = [
        "build_env mine",
        "build_env other",
        "compare",
        "confirm mine",
        "confirm other",
        "install_env",
        "run_sweep mine",
        "run_sweep other",
    ]
    of_two = ["build_env third", "confirm third", "install_env", "report third", "run_sweep third"]
    expected = ["both", *(f"one_{job}" for job in [*of_one, "stage_data pictures"]), *(f"two_{job}" for job in of_two)]
    assert jobs(dry_run(outer, "both")) == expected
    # What is theirs is written when jobs begin.
    done = outer.snakemake("--cores", "1", "a/resources/data/pictures/manifest.yaml")
    assert done.returncode == 0, done.stderr
    configs = {str(path.relative_to(outer.root)) for path in outer.root.glob("**/.config/*.yaml")}
    assert configs == {"a/state/.config/mine.yaml", "a/state/.config/other.yaml", "b/c/state/.config/third.yaml"}
    assert outer.read_config("b/c/state/.config/third.yaml")["results_dir"] == "b/c/results"


def test_two_modules_share_an_absolute_folder(outer: Project) -> None:
    shared = f'{{**config["tuning"], "resources_dir": "{outer.root}/shared"}}'
    order = "ruleorder: one_install_env > two_install_env\nruleorder: one_stage_data > two_stage_data\n"
    order += "ruleorder: one_build_env > two_build_env\n"  # of one name here
    write_snakefile(outer, module("one", shared, "a"), module("two", shared, "b"), rules=order)
    found = jobs(dry_run(outer, "one_all", "two_all"))
    assert "one_install_env" in found
    assert not {"two_install_env", "two_stage_data pictures"} & set(found)
    assert "two_run_sweep mine" in found


def test_single_rules(outer: Project) -> None:
    use = module().partition("use rule")[0] + "use rule stage_data, install_env, build_env from tuning as tuning_*\n"
    use += "use rule run_sweep from tuning as find_best with:\n    threads: 1\n"
    write_snakefile(outer, use, rules=rule("paper"))
    said = dry_run(outer, "paper", "--cores", "4")
    assert jobs(said) == ["find_best mine", "paper", "tuning_build_env mine", "tuning_install_env"]
    assert "--threads 1" in said
    assert jobs(dry_run(outer, "tuning/resources/data/pictures/manifest.yaml")) == ["tuning_stage_data pictures"]


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        ('config["tuning"]', ["config.yaml: tuning.sweeps.mine.num_samples: 0 is not allowed: a whole number, at least 1"]),
        ('{**config["tuning"]}', ["module tuning: sweeps.mine.num_samples: 0 is not allowed: a whole number, at least 1"]),
        ('{"sweeps": {}}', ["module tuning: sweeps: {} is not allowed: a map that is not empty"]),
        (
            "config",
            [
                "config.yaml: title: unknown key. Allowed: results_dir, state_dir, resources_dir, datasets, env, ray, sweeps",
                "config.yaml: tuning: unknown key. Allowed: results_dir, state_dir, resources_dir, datasets, env, ray, sweeps",
                "config.yaml: sweeps: missing. Allowed: a map that is not empty",
            ],
        ),
    ],
)
def test_each_mistake_in_its_config_is_one_line_that_says_where(outer: Project, config: str, lines: list[str]) -> None:
    sweeps = {"mine": CONFIG["sweeps"]["mine"] | {"num_samples": 0}}
    outer.write_config({"title": "A paper", "tuning": CONFIG | {"sweeps": sweeps}}, "config.yaml")
    write_snakefile(outer, module(config=config))
    done = outer.snakemake("--dry-run")
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "Error" in line] == [f"Error: {line}" for line in lines]


def test_of_a_search_space_it_says_where_too(outer: Project) -> None:
    sweeps = {"mine": CONFIG["sweeps"]["mine"] | {"search_space": {"x": {"unifrom": [0, 1]}}}}
    outer.write_config({"tuning": CONFIG | {"sweeps": sweeps}}, "config.yaml")
    write_snakefile(outer, module())
    assert refusal(outer).startswith("Error: config.yaml: tuning.sweeps.mine.search_space.x.unifrom: [0, 1] is not allowed: ")


def test_a_key_that_stands_twice_is_refused_in_the_part_that_is_ours(outer: Project) -> None:
    text = (outer.root / "config.yaml").read_text(encoding="utf-8")
    write_snakefile(outer, module())
    outer.write("config.yaml", text + "title: Another\n")
    dry_run(outer)
    outer.write("config.yaml", text + "  state_dir: a\n  state_dir: b\n")
    assert refusal(outer).startswith("Error: config.yaml: tuning.state_dir: stands twice in one map")


def test_a_snakefile_that_lies_in_no_folder_is_refused(outer: Project) -> None:
    for words in (["init", "--quiet"], ["add", "raysweep"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "a"]):
        subprocess.run(["git", *words], cwd=outer.root, check=True)
    fetched = f'gitfile("{outer.root}", path="raysweep/Snakefile", ref="HEAD")'
    write_snakefile(outer, module().replace('"raysweep/Snakefile"', fetched))
    assert refusal(outer).endswith("is no folder here, and its rules need the scripts beside it: name a clone's Snakefile")


@pytest.mark.parametrize("snakefile", ["Snakefile", "workflow/Snakefile"])  # the latter is where snakedeploy and the catalog look
def test_what_snakedeploy_writes_runs_from_a_clone(outer: Project, snakefile: str) -> None:
    use = f'module raysweep:\n    snakefile:\n        "../raysweep/{snakefile}"\n    config:\n        config\n\nuse rule * from raysweep\n'
    outer.write("workflow/Snakefile", f'configfile: "config/config.yaml"\n{use}')
    outer.write_config(CONFIG)
    found = jobs(dry_run(outer))
    assert {"all", "compare", "report mine", "stage_data pictures"} <= set(found)


def test_a_change_runs_again_what_it_does_by_itself(outer: Project) -> None:
    tuning = CONFIG | {"sweeps": {"mine": CONFIG["sweeps"]["mine"]}}
    outer.write_config({"tuning": tuning}, "config.yaml")
    write_snakefile(outer, module())
    said = dry_run(outer)
    for line in re.findall(r"(?m)^    output: (.*)$", said):
        for path in line.split(", "):
            outer.write(f"{path}/one" if path.endswith(("/model", "/figures")) else path, "")
    done = outer.snakemake("--touch", "--forceall", "--cores", "1")
    assert done.returncode == 0, done.stderr
    again = {
        "allocation": ({"cpus_per_node": 4}, []),
        "num_samples": (99, ["tuning_all", "tuning_confirm mine", "tuning_report mine", "tuning_run_sweep mine"]),
    }
    assert jobs(dry_run(outer)) == []
    for key, (value, expected) in again.items():
        outer.write_config({"tuning": tuning | {"sweeps": {"mine": tuning["sweeps"]["mine"] | {key: value}}}}, "config.yaml")
        assert jobs(dry_run(outer)) == expected, key


def test_the_documents_example_runs_from_nothing_to_its_report(tmp_path: Path) -> None:
    outer = sweeping.Project(tmp_path / "an outer workflow")
    checkouts.copy_to(outer.folder / "raysweep")
    files = documented()
    assert list(files) == ["Snakefile", "config.yaml", "train.py"]
    for name, text in files.items():
        outer.write(name, text)
    config = yaml.safe_load(files["config.yaml"])
    config["tuning"]["env"] = sweeping.ENV  # which is there
    config["tuning"]["sweeps"]["mine"] |= {"confirm": {"seeds": 1}}
    outer.write("config.yaml", yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--cores", "2"]
    run = outer.finished([*command, "paper", "tuning_all"])
    assert run.returncode == 0, run.stdout + run.stderr
    assert sweeping.ours(outer.folder) == []
    assert {path.name for path in outer.folder.iterdir()} - {*files, "__pycache__"} == {".snakemake", "raysweep", "tuning", "paper.txt"}
    assert not (outer.folder / "raysweep/results").exists()
    assert yaml.safe_load((outer.folder / "paper.txt").read_text())["num_trials"] == 4
    tuning = sweeping.Project(outer.folder / "tuning")
    assert len(tuning.trials("mine")) == 4
    assert tuning.result("mine", "config.yaml")["results_dir"] == "tuning/results"
    assert (tuning.folder / "results/mine/report.html").stat().st_size > 10_000
    assert "best score" in (tuning.folder / "logs/run_sweep/mine.log").read_text()
    assert list((outer.folder / ".snakemake/raysweep").iterdir()) == []
    again = outer.finished([*command, "paper", "tuning_all"])
    assert "Nothing to be done" in again.stdout + again.stderr
    watched = outer.finished([sys.executable, "raysweep/workflow/scripts/watch.py", "--state-dir", "tuning/state", "--once"])
    assert watched.returncode == 0, watched.stdout + watched.stderr
    assert "mine" in watched.stdout + watched.stderr
    reported = outer.finished([*command, "tuning_all", "--report", "report.zip"])
    assert reported.returncode == 0, reported.stdout + reported.stderr
    with zipfile.ZipFile(outer.folder / "report.zip") as archive:
        assert {"trials.csv", "best.yaml", "confirmed.yaml"} <= {Path(name).name for name in archive.namelist()}
