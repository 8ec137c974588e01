"""The report's text: what it finds in a sweep, what it says of it, and that what it says can be used."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raysweep.common.errors import RaysweepError
from raysweep.common.files import read_yaml, write_yaml
from raysweep.common.text import number
from raysweep.config.space import Numeric
from raysweep.record.record import Record, read_sweep
from raysweep.report.charts import MAX_CURVES, MAX_POINTS, shared_data
from raysweep.report.inputs import Clock, Inputs, Key, position_in_range, read_inputs
from raysweep.report.notes import Note, failures, notes, tied
from raysweep.report.report import charts_of, render, snippet, write_report
from recorded import header, write_outputs, write_record

ROOT = Path(__file__).resolve().parents[3]


def made(folder: Path, outputs: dict[str, Any] | None = None, **sweep: Any) -> Inputs:
    """A made-up sweep as the report reads it."""
    path = folder / "state" / "lenet" / "record.jsonl"
    return read_inputs(path, **write_outputs(folder, write_record(path, **sweep), **(outputs or {})))


def page_of(inputs: Inputs, root: Path = ROOT) -> str:
    return render(inputs, charts_of(inputs), root)


def note(inputs: Inputs, start: str) -> Note:
    """The one note whose title starts so."""
    found = [n for n in notes(inputs) if n.title.startswith(start)]
    assert len(found) == 1, [n.title for n in notes(inputs)]
    return found[0]


def titles(inputs: Inputs) -> list[str]:
    return [n.title for n in notes(inputs)]


def with_values(folder: Path, values: list[float], mode: str = "max", deviation: float | None = 0.01) -> Inputs:
    """A sweep of one epoch whose trials reported `values`, confirmed with that standard deviation."""
    path = folder / "state" / "lenet" / "record.jsonl"
    with Record(path) as record:
        record.write(
            "session", sweep=header(mode=mode, num_trials=len(values)), host="login-1", pid=1, nodes=[{"name": "n", "cpus": 1, "gpus": 0}]
        )
        for i, value in enumerate(values):
            trial = f"{i:05d}"
            record.write("trial", trial=trial, index=i, repeat=0, seed=i, config={"lr": 0.003 + i / 1e4, "batch_size": 8})
            record.write("start", trial=trial, node="n", from_epoch=0)
            record.write("result", trial=trial, epoch=1, metrics={"accuracy": value}, time_s=1.0, node="n")
            record.write("finish", trial=trial, status="TERMINATED", error=None)
        record.write("session_end", outcome="complete")
    inputs = read_inputs(path, **write_outputs(folder, read_sweep(path)))
    inputs.confirmed["standard_deviation"] = deviation
    return inputs


# --- ties -------------------------------------------------------------------------------------------------------------------------


def test_a_value_exactly_one_standard_deviation_below_is_a_tie_and_one_beyond_is_not(tmp_path: Path) -> None:
    inputs = with_values(tmp_path, [0.47, 0.46, 0.459])
    assert [trial.trial_id for trial, _ in tied(inputs)] == ["00001"]
    found = note(inputs, "It is a tie")
    assert found.kind == "warn"
    assert "1 of the other 2 trials lies within one standard deviation" in found.text
    assert "00001 (0.46)" in found.text


def test_with_mode_min_the_tie_lies_above_the_winner(tmp_path: Path) -> None:
    inputs = with_values(tmp_path, [0.5, 0.305, 0.3], mode="min")
    assert inputs.winner.trial_id == "00002"
    assert [trial.trial_id for trial, _ in tied(inputs)] == ["00001"]
    assert "lowest of 3" in note(inputs, "The winner’s validation accuracy is optimistic").text


def test_equal_values_are_a_tie_even_without_any_spread(tmp_path: Path) -> None:
    inputs = with_values(tmp_path, [0.4, 0.4, 0.4], deviation=0.0)
    assert note(inputs, "It is a tie among 3").kind == "warn"
    assert inputs.winner.trial_id == "00000"


def test_a_winner_that_stands_alone_is_said_to(tmp_path: Path) -> None:
    assert note(with_values(tmp_path, [0.47, 0.3]), "The winner stands alone").kind == "good"


def test_one_seed_cannot_tell_a_tie(tmp_path: Path) -> None:
    inputs = made(tmp_path, {"seeds": 1})
    assert inputs.confirmed["standard_deviation"] is None
    assert tied(inputs) == []
    assert "confirm.seeds" in note(inputs, "How much luck").text


def test_one_trial_selects_nothing(tmp_path: Path) -> None:
    inputs = made(tmp_path, num_trials=1)
    assert note(inputs, "Nothing to compare with").kind == "warn"
    assert not any("optimistic" in title for title in titles(inputs))


def test_many_ties_are_counted_and_the_first_five_named(tmp_path: Path) -> None:
    text = note(with_values(tmp_path, [0.4] * 9), "It is a tie among 9").text
    assert "00005 (0.4) and others" in text
    assert "00006" not in text


# --- optimism ---------------------------------------------------------------------------------------------------------------------


def test_the_confirmed_mean_is_held_against_the_best_validation_figure(tmp_path: Path) -> None:
    inputs = with_values(tmp_path, [0.47, 0.3])
    inputs.confirmed["mean"] = 0.45
    assert "0.45, is 0.02 below it (trained on the validation part as well): quote that one" in note(inputs, "The winner’s validation").text
    inputs.confirmed["mean"] = 0.48
    assert "0.48, is 0.01 above it" in note(inputs, "The winner’s validation").text
    inputs.confirmed["mean"] = 0.47
    assert "0.47, is equal to it: quote" in note(inputs, "The winner’s validation").text


# --- edges of the search space ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "log", "position"), [(1e-4, True, 0), (1e-1, True, 1), (10**-2.5, True, 0.5), (1e-4, False, 0), (0.05005, False, 0.5)]
)
def test_positions_are_on_the_scale_that_is_searched(value: float, log: bool, position: float) -> None:
    assert position_in_range(Numeric("", 1e-4, 1e-1, log), value) == pytest.approx(position)


@pytest.mark.parametrize(
    ("space", "value", "expected"),
    [
        ({"loguniform": [1e-4, 1e-1]}, 0.072, "x lies at the edge of its range"),  # 0.952 on the log scale, 0.72 on the linear one
        ({"loguniform": [1e-4, 1e-1]}, 0.069, None),
        ({"uniform": [0, 1]}, 0.04, "x lies at the edge of its range"),
        ({"uniform": [0, 1]}, 0.06, None),
        ({"randint": [0, 101]}, 100, "x lies at the edge of its range"),  # the upper bound is excluded
        ({"randint": [0, 101]}, 90, None),
        ({"randint": [1, 5]}, 4, "x is the largest on offer"),  # four values: no outer 5 %
        ({"randint": [1, 3]}, 2, None),  # two values: one of them is always at an end
        ({"quniform": [0, 1, 0.25]}, 0.0, "x is the smallest on offer"),
        ({"choice": [2, 4, 8, 16]}, 16, "x is the largest on offer"),
        ({"choice": [16, 2, 8, 4]}, 2, "x is the smallest on offer"),  # offered in any order
        ({"choice": [2, 4, 8, 16]}, 8, None),
        ({"grid": [1, 2]}, 2, None),
        ({"choice": ["a", "b", "c"]}, "c", None),
        ({"choice": [True, False]}, True, None),
        ({"normal": [0, 1]}, 9.0, None),
        (0.5, 0.5, None),
    ],
)
def test_edges(tmp_path: Path, space: Any, value: Any, expected: str | None) -> None:
    inputs = made(tmp_path, num_trials=2, search_space={"x": space})
    inputs.winner.config["x"] = value
    found = [n for n in notes(inputs) if n.title.startswith("x ")]
    assert [n.title for n in found] == ([expected] if expected else [])
    if expected and "edge" in expected:
        assert "widen it" in found[0].text
        assert found[0].kind == "warn"


def test_a_value_below_a_range_that_was_changed_on_the_way_is_no_fault_of_the_report(tmp_path: Path) -> None:
    inputs = made(tmp_path, num_trials=2)
    inputs.winner.config["lr"] = 0
    assert not any(title.startswith("lr") for title in titles(inputs))


# --- splits, seeds, failures, course ----------------------------------------------------------------------------------------------


def test_split_sizes_and_the_standard_error_of_an_accuracy(tmp_path: Path) -> None:
    text = note(with_values(tmp_path, [0.5, 0.1]), "Split sizes").text
    assert "Trained on 45,000, compared on 5,000 validation examples; 10,000 test examples were kept for the confirmation" in text
    assert "standard error of 0.0071" in text  # √(0.5 · 0.5 / 5000)


def test_seeds_are_said_for_models_and_for_trainables(tmp_path: Path) -> None:
    text = note(made(tmp_path / "a", seed=7), "What was seeded").text
    assert text.startswith("From seed 7: the configurations, the validation split (seed 0), each trial’s own seed")
    own = made(tmp_path / "b", {"on": "validation"}, dataset=None, model=None, optimizer=None, loss=None, trainable="train.py:train")
    assert "RAYSWEEP_SEED" in note(own, "What was seeded").text
    assert "validation split" not in note(own, "What was seeded").text
    assert note(own, "The trainable brings its own data").kind == "info"
    assert "not a test result" in note(own, "There is no test result").text


def test_failures_are_grouped_by_cause_whatever_the_numbers_in_it(tmp_path: Path) -> None:
    inputs = made(tmp_path, failed={1: "out of memory: 12 MiB", 2: "killed", 5: "out of memory: 77 MiB"})
    assert [(f.cause, [t.trial_id for t in f.trials]) for f in failures(inputs.trials)] == [
        ("out of memory: 12 MiB", ["00001", "00005"]),
        ("killed", ["00002"]),
    ]
    assert "3 of 20 trials" in note(inputs, "3 trials failed").text


def test_an_unfinished_sweep_is_called_so(tmp_path: Path) -> None:
    inputs = made(tmp_path, running=2, outcome="incomplete")
    assert "2 of 20 planned trials" in note(inputs, "The sweep is not finished").text
    assert "Not finished." in page_of(inputs)


def test_interruptions_are_told_and_their_gaps_left_out_of_the_time(tmp_path: Path) -> None:
    inputs = made(tmp_path, interruptions=2, max_epochs=4)
    whole = made(tmp_path / "whole", max_epochs=4)
    text = note(inputs, "Interruptions").text
    assert text.startswith("The sweep ran in 3 sessions, 2 of which were cut off.")
    assert "Interruptions" not in titles(whole)
    clock = Clock(inputs.sweep)
    assert clock.total_s <= whole.clock.total_s  # an hour was between them each time
    assert clock.total_s > 0.5 * whole.clock.total_s
    ends = [attempt.end_s for attempt in inputs.attempts]
    assert max(ends) <= clock.total_s
    assert all(a.start_s <= a.end_s for a in inputs.attempts)
    assert sum(a.state == "continued later" for a in inputs.attempts) == sum(len(t.attempts) - 1 for t in inputs.trials) > 0


def test_lost_nodes_full_gpus_and_second_attempts_are_told(tmp_path: Path) -> None:
    inputs = made(tmp_path)
    sweep = inputs.sweep
    for event in (
        {"event": "node", "node": "n7", "state": "lost"},
        {"event": "node", "node": "n8", "state": "joined"},
        {"event": "gpu_share", "gpu": 0.1, "used_mb": 7100, "total_mb": 81559},
        {"event": "gpu_share", "gpu": 0.2},
    ):
        sweep.apply(event | {"at": "2026-03-01T10:00:00.000Z"})
    first, second, *_ = inputs.trials
    first.failures.append({"error": "its node was lost", "counted": False, "at": ""})
    second.failures.append({"error": "it hung", "counted": True, "at": ""})
    assert note(inputs, "1 node lost").text.startswith("The sweep went on without n7. 1 trial had to move")
    assert "took 7,100 of 81,559 MB" in note(inputs, "GPUs were shared").text
    assert "each got 0.2 of one" in note(inputs, "GPUs were too full").text
    assert note(inputs, "1 trial tried again").kind == "info"


def test_how_trials_were_trained_is_told(tmp_path: Path) -> None:
    inputs = made(tmp_path)
    assert not [found for found in notes(inputs) if "trained" in found.title]
    inputs.sweep.fused = {"why_not": "it draws random numbers in training, such as for dropout"}
    assert "such as for dropout" in note(inputs, "Trials were trained one by one").text
    inputs.sweep.fused = {"why_not": None, "processes": 2, "seats": 10, "speed_up": 2.57, "way": "compiled in 27 s"}
    text = note(inputs, "Trials were trained together").text
    assert text.startswith("Up to 10 at a time in each of 2 processes, 2.6 times as fast as one by one (compiled in 27 s).")


def test_trials_that_were_stopped_early_are_counted(tmp_path: Path) -> None:
    inputs = made(tmp_path, max_epochs=8, scheduler={"name": "asha"})
    stopped = sum(t.status == "STOPPED" for t in inputs.trials)
    assert stopped > 0
    assert note(inputs, f"{stopped} trial").kind == "info"


# --- figures' data ----------------------------------------------------------------------------------------------------------------


def test_trials_on_one_node_that_overlap_get_rows_of_their_own(tmp_path: Path) -> None:
    inputs = made(tmp_path, nodes=("b", "a"), slots=3)
    bars = shared_data(inputs, [])["bars"]
    assert set(bars["lane"]) == set(range(6))
    by_lane: dict[int, list[tuple[float, float]]] = {}
    for lane, start, end in zip(bars["lane"], bars["start"], bars["end"], strict=True):
        by_lane.setdefault(lane, []).append((start, end))
    for spans in by_lane.values():
        assert all(first[1] <= second[0] for first, second in zip(sorted(spans), sorted(spans)[1:], strict=False))
    nodes = {a.trial.trial_id: a.node for a in inputs.attempts}
    assert {nodes[t] for t, lane in zip(bars["trial"], bars["lane"], strict=True) if lane < 3} == {"a"}


def test_failed_trials_have_no_value_in_the_figures(tmp_path: Path) -> None:
    inputs = made(tmp_path, failed={0: "x"})
    trials = shared_data(inputs, inputs.keys)["trials"]
    assert [v for t, v in zip(trials["trial"], trials["value"], strict=True) if t == "00000"] == [None]
    assert trials["trial"][-1] == inputs.winner.trial_id  # drawn last, on top


def test_many_long_curves_are_thinned_out_and_it_is_said(tmp_path: Path) -> None:
    inputs = made(tmp_path, num_trials=MAX_CURVES + 50, max_epochs=MAX_POINTS + 20, slots=50)
    curves = shared_data(inputs, [])["curves"]
    assert len(set(curves["trial"])) == MAX_CURVES
    assert inputs.winner.trial_id in curves["trial"]
    winner = [(e, v) for t, e, v in zip(curves["trial"], curves["epoch"], curves["value"], strict=True) if t == inputs.winner.trial_id]
    assert len(winner) <= MAX_POINTS
    assert winner[0][0] == 1
    assert winner[-1][0] == MAX_POINTS + 20
    assert max(v for _, v in winner) == inputs.best["metric"]["value"]
    page = page_of(inputs)
    assert f"{MAX_CURVES} of {MAX_CURVES + 50} curves are drawn" in page
    assert f"at most {MAX_POINTS} epochs are drawn" in page


def test_keys_nested_constant_and_gone_from_the_space(tmp_path: Path) -> None:
    inputs = made(tmp_path, search_space={"net": {"width": {"choice": [8, 16]}, "act": {"choice": ["relu", "tanh"]}}, "momentum": 0.9})
    inputs.winner.config["old"] = [1, 2]
    keys = {key.name: key for key in inputs.keys}
    assert list(keys) == ["net/width", "net/act", "momentum", "old"]
    assert [key.varies for key in keys.values()] == [True, True, False, False]
    assert keys["net/width"].categories == [8, 16]
    assert Key("x", None, (3, "b", 1)).categories == [3, "b", 1]


# --- the page ---------------------------------------------------------------------------------------------------------------------

HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror=\"window.broken = 1\"> {{ 7 * 7 }} \u2028 'a' & \\"


def test_nothing_of_the_users_becomes_markup(tmp_path: Path) -> None:
    inputs = made(
        tmp_path,
        failed={0: HOSTILE},
        name="sw<b>eep",
        search_space={"lr": {"loguniform": [1e-4, 1e-1]}, HOSTILE.replace("/", "|"): {"choice": [HOSTILE, "b"]}},
    )
    write_yaml(tmp_path / "config.yaml", {"x": HOSTILE})
    inputs.config_text = (tmp_path / "config.yaml").read_text()
    page = page_of(inputs)
    assert page.count("<script") == 3  # data, bundle, code
    assert page.count("</script") == 3
    assert "<img" not in page.replace(inputs.config_text, "").split("<script")[0]
    assert "sw<b>eep" not in page
    assert "sw&lt;b&gt;eep" in page
    assert "{{ 7 * 7 }}" in page  # shown as it is, not run as a template


def test_the_policy_names_the_scripts_and_allows_nothing_else(tmp_path: Path) -> None:
    page = page_of(made(tmp_path))
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1])  # type: ignore[index]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy


def test_the_page_of_a_thousand_trials_is_below_three_megabytes(tmp_path: Path) -> None:
    inputs = made(
        tmp_path,
        num_trials=1000,
        max_epochs=10,
        slots=20,
        scheduler={"name": "asha"},
        search_space={"lr": {"loguniform": [1e-4, 1e-1]}, "net": {f"p{i}": {"uniform": [0, 1]} for i in range(6)}},
    )
    path = tmp_path / "report.html"
    write_report(inputs, path, tmp_path / "figures", ROOT)
    assert path.stat().st_size < 3_000_000
    assert path.read_text(encoding="utf-8").count("<tr class=") == 1000


@pytest.mark.parametrize(
    ("sweep", "outputs"),
    [
        ({"num_trials": 1}, {}),
        ({"constant": 0.5}, {"spread": 0.0}),
        ({"num_trials": 5, "failed": dict.fromkeys(range(4), "boom")}, {}),
        ({"mode": "min", "metric": "loss", "max_epochs": 3}, {}),
        ({"search_space": {"act": {"choice": ["relu", "tanh", None, True]}}}, {}),
        ({"search_space": {"momentum": 0.9}}, {}),
        ({"search_space": {}}, {}),
        ({"search_space": {"n": {"normal": [0, 1]}, "i": {"lograndint": [1, 3]}, "q": {"qloguniform": [1, 100, 1]}}}, {"seeds": 1}),
        ({}, {"seed_errors": {0: "died", 1: "died"}}),
        ({"dataset": None, "model": None, "optimizer": None, "loss": None, "trainable": "a/train.py:train"}, {"on": "validation"}),
        ({"interruptions": 3, "nodes": ("a", "b"), "max_epochs": 3}, {"synthetic": True}),
    ],
)
def test_a_page_comes_of_every_kind_of_sweep(tmp_path: Path, sweep: dict[str, Any], outputs: dict[str, Any]) -> None:
    inputs = made(tmp_path, outputs, **sweep)
    page = page_of(inputs)
    figures = json.loads(html.unescape(re.search(r'id="figures">(.*?)</script>', page)[1]))  # type: ignore[index]
    assert len(figures["data"]["trials"]["trial"]) == len(inputs.trials)
    assert number(inputs.best["metric"]["value"]) in page
    assert ("Synthetic data." in page) == bool(outputs.get("synthetic"))
    for place in figures["specs"]:
        assert f'id="chart-{place}"' in page


def test_synthetic_data_is_said_above_the_result(tmp_path: Path) -> None:
    page = page_of(made(tmp_path, {"synthetic": True}))
    assert page.index("Synthetic data.") < page.index("Best configuration")


def test_files_of_another_sweep_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    outputs = write_outputs(tmp_path, write_record(path))
    with pytest.raises(RaysweepError, match="belongs to the sweep 'lenet', not to 'resnet'"):
        read_inputs(path, **(outputs | {"sweep_name": "resnet"}))
    best = read_yaml(outputs["path_to_best"])
    write_yaml(outputs["path_to_best"], best | {"trial_id": "99999"})
    with pytest.raises(RaysweepError, match=r"trial 99999 is not in the record .* -R run_sweep"):
        read_inputs(path, **outputs)


def test_the_entry_point_writes_the_page_and_names_a_missing_file(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    outputs = write_outputs(tmp_path, write_record(record))
    command = [sys.executable, str(ROOT / "workflow/scripts/report.py"), "--sweep", "lenet", "--record", str(record)]
    for option in ("best", "confirmed", "config", "data-manifest", "env-manifest"):
        command += [f"--{option}", str(outputs[f"path_to_{option.replace('-', '_')}"])]
    command += [
        "--figures-dir",
        str(tmp_path / "figures"),
        "--journal",
        str(tmp_path / "optuna.journal"),
        "--output",
        str(tmp_path / "report.html"),
        "--log",
        str(tmp_path / "report.log"),
    ]
    subprocess.run(command, check=True, cwd=ROOT)
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "report.html" in (tmp_path / "report.log").read_text()
    outputs["path_to_best"].unlink()
    failed = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "best.yaml" in failed.stderr


# --- the snippet runs -------------------------------------------------------------------------------------------------------------

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
    inputs = made(tmp_path, model=f"{file}:Net", search_space=space)
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
    assert done.stdout.split() == [inputs.data.classes[i] for i in expected]
    assert f">{html.escape('import sys')}" in page_of(inputs, tmp_path)


def test_the_snippet_for_the_bundled_model_imports_it_from_the_workflow(tmp_path: Path) -> None:
    text = snippet(made(tmp_path), ROOT)
    assert 'sys.path.insert(0, "workflow/scripts")' in text
    assert "from raysweep.models.lenet import LeNet" in text
    assert "model = LeNet()" in text  # lr and batch_size are no business of its constructor


def test_the_snippet_for_a_trainable_names_the_checkpoint_and_runs(tmp_path: Path) -> None:
    inputs = made(tmp_path, {"on": "validation"}, dataset=None, model=None, optimizer=None, loss=None, trainable="train.py:train")
    inputs.model_dir.mkdir(parents=True)
    (inputs.model_dir / "weights.pt").write_text("")
    done = subprocess.run([sys.executable, "-c", snippet(inputs, tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["results/lenet/model/weights.pt"]
    assert done.stdout.splitlines()[0] == str(inputs.winner.config)


def test_numbers_without_a_literal_stand_in_the_snippet_as_python(tmp_path: Path) -> None:
    trainable = {"dataset": None, "model": None, "optimizer": None, "loss": None, "trainable": "train.py:train"}
    space = {"a": math.inf, "b": {"c": -math.inf}, "d": {"choice": [[1, math.nan]]}, "e": "inf"}
    inputs = made(tmp_path, {"on": "validation"}, search_space=space, **trainable)
    known: dict[str, Any] = {}
    exec(snippet(inputs, tmp_path), known)
    assert repr(known["config"]) == repr({"a": math.inf, "b": {"c": -math.inf}, "d": [1, math.nan], "e": "inf"})
    assert f">{html.escape('from pathlib')}" in page_of(inputs, tmp_path)


def test_a_trainable_without_checkpoints_is_said_to_leave_no_model(tmp_path: Path) -> None:
    inputs = made(tmp_path, {"on": "validation"}, dataset=None, model=None, optimizer=None, loss=None, trainable="train.py:train")
    assert "checkpoint after epoch 1" in page_of(inputs, tmp_path)
    inputs.best["model_epoch"] = None
    assert "saved no checkpoint" in page_of(inputs, tmp_path)
