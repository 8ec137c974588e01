from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from raysweep.common.errors import RaysweepError
from raysweep.common.files import read_yaml, write_yaml
from raysweep.common.typed_json import to_json
from raysweep.config.model import Objective
from raysweep.record.events import Attempt, Provenance
from raysweep.record.outputs import best_of, confirmation_of, confirmed_means, next_best, write_model, write_outputs, write_trials
from raysweep.record.results import BestResult, ConfirmedMean, Goal
from raysweep.record.sweep import Sweep
from raysweep.record.trials import Result, Trial

AT = "2026-03-01T09:00:00.000Z"
COLUMNS = ["seed", "repeat", "accuracy", "epoch_of_metric", "epochs", "time_s", "node", "started", "ended", "error"]


def trial(number: int, *values: float, config: dict[str, Any] | None = None, error: str | None = None, **changes: Any) -> Trial:
    """A finished trial that reported these accuracies, one an epoch."""
    made = Trial(f"{number:05d}", number, 0, 100 + number, config if config is not None else {"lr": 0.1})
    made.status = "ERROR" if error else "TERMINATED"
    made.error, made.ended = error, AT
    made.results = [Result(epoch, {"accuracy": value}, epoch * 1.5, AT) for epoch, value in enumerate(values, start=1)]
    made.attempts = [Attempt("n1", AT, 0)]
    for key, value in changes.items():
        setattr(made, key, value)
    return made


TWO = (Objective("accuracy", "max"), Objective("size", "min"))


def sweep(*trials: Trial) -> Sweep:
    return Sweep(trials={t.trial_id: t for t in trials})


def rows(tmp_path: Path, *trials: Trial) -> list[dict[str, str]]:
    write_trials(tmp_path / "trials.csv", sweep(*trials), "accuracy", "max")
    with (tmp_path / "trials.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def checkpoint(state_dir: Path, made: Trial, epoch: int) -> None:
    """A checkpoint of that epoch, on the disk and in the record."""
    made.checkpoints[epoch] = f"checkpoints/{made.trial_id}/{epoch}"
    folder = state_dir / made.checkpoints[epoch]
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(f"{made.trial_id} after epoch {epoch}")
    (folder / "training_state.pt").write_text("optimizer")


def outputs(tmp_path: Path, *trials: Trial, mode: Any = "max") -> dict[str, Any]:
    write_outputs(tmp_path / "results", tmp_path / "state", sweep(*trials), Goal("s", "accuracy", mode), Provenance("0.1.0", "abc", "e"))
    return read_yaml(tmp_path / "results/best.yaml")


def test_the_columns_and_a_row(tmp_path: Path) -> None:
    [row] = rows(tmp_path, trial(0, 0.25, 0.5, 0.4, config={"lr": 0.001, "net": {"width": 8}}))
    assert list(row) == ["trial_id", "status", "config/lr", "config/net/width", *COLUMNS]
    assert row == {
        "trial_id": "00000",
        "status": "TERMINATED",
        "config/lr": "0.001",
        "config/net/width": "8",
        "seed": "100",
        "repeat": "0",
        "accuracy": "0.5",
        "epoch_of_metric": "2",
        "epochs": "3",
        "time_s": "4.5",
        "node": "n1",
        "started": AT,
        "ended": AT,
        "error": "",
    }


def test_a_sweep_without_trials_has_a_table_without_rows(tmp_path: Path) -> None:
    assert rows(tmp_path) == []
    assert (tmp_path / "trials.csv").read_text() == ",".join(["trial_id", "status", *COLUMNS]) + "\n"


def test_rows_stand_in_the_order_of_their_ids(tmp_path: Path) -> None:
    assert [row["trial_id"] for row in rows(tmp_path, trial(2), trial(0), trial(1))] == ["00000", "00001", "00002"]


def test_a_trial_without_a_value_leaves_its_cells_empty(tmp_path: Path) -> None:
    [row] = rows(tmp_path, trial(0, error="raised", attempts=[], ended=None))
    assert (row["accuracy"], row["epoch_of_metric"], row["epochs"]) == ("", "", "0")
    assert (row["node"], row["started"], row["ended"], row["error"]) == ("", "", "", "raised")


def test_keys_that_a_trial_does_not_have_are_empty(tmp_path: Path) -> None:
    first, second = rows(tmp_path, trial(0, config={"a": 1}), trial(1, config={"b": 2}))
    assert (first["config/a"], first["config/b"]) == ("1", "")
    assert (second["config/a"], second["config/b"]) == ("", "2")


def test_any_value_and_any_text_comes_back_whole(tmp_path: Path) -> None:
    error = 'ValueError: "a", b\nsecond line\tü'
    config = {"list": [1, 2], "flag": True, "none": None, "text": 'x,"y"', "small": 1e-05, "choice": "true"}
    [row] = rows(tmp_path, trial(0, config=config, error=error))
    assert row["error"] == error
    found = {key.removeprefix("config/"): value for key, value in row.items() if key.startswith("config/")}
    assert found == {"list": "[1, 2]", "flag": "true", "none": "", "text": 'x,"y"', "small": "1e-05", "choice": "true"}


def test_best_yaml_says_what_won_and_where_it_comes_from(tmp_path: Path) -> None:
    winner = trial(1, 0.5, 0.9, 0.8, config={"lr": 0.01, "net": {"width": 8}})
    checkpoint(tmp_path / "state", winner, 2)
    best = outputs(tmp_path, trial(0, 0.7), winner, trial(2, 0.95, error="died later"))
    assert best == {
        "sweep": "s",
        "trial_id": "00001",
        "config": {"lr": 0.01, "net": {"width": 8}},
        "metric": {"name": "accuracy", "mode": "max", "value": 0.9},
        "epochs": 2,
        "model_epoch": 2,
        "num_trials": 3,
        "num_errors": 1,
        "provenance": {"workflow_version": "0.1.0", "identity": "abc", "environment_sha256": "e", "data_sha256": None},
    }
    assert (tmp_path / "results/model/model.safetensors").read_text() == "00001 after epoch 2"


def test_the_next_best_configurations_follow_the_winner_and_none_is_listed_twice() -> None:
    values = [(0.5, 1), (0.9, 2), (0.8, 2), (0.7, 3), (0.95, 4), (0.6, 1)]
    found = sweep(*(trial(number, value, config={"x": x}) for number, (value, x) in enumerate(values)))
    found.trials["00004"].status = "ERROR"
    goal = Goal("s", "accuracy", "max")
    best = best_of(found, goal, Provenance("0.1.0", "abc", "e"))
    assert best.trial_id == "00001"
    others = next_best(found, goal, best, 9)
    assert [(other.trial_id, other.config, other.value, other.epochs) for other in others] == [
        ("00003", {"x": 3}, 0.7, 1),
        ("00005", {"x": 1}, 0.6, 1),
    ]
    assert next_best(found, goal, best, 1) == others[:1]
    assert next_best(found, goal, best, 0) == []


def test_the_smallest_value_wins_where_it_is_wanted(tmp_path: Path) -> None:
    assert outputs(tmp_path, trial(0, 0.7), trial(1, 0.9, 0.1), mode="min")["metric"]["value"] == 0.1


def test_where_every_trial_failed_the_table_is_there_and_the_reason_is_said(tmp_path: Path) -> None:
    trials = [trial(0, error="rare"), trial(1, error="common"), trial(2, error="common")]
    with pytest.raises(RaysweepError, match=r"^s: all 3 trials failed, 2 of them so: common\. All reasons are in .*/trials\.csv\. Mend it"):
        outputs(tmp_path, *trials)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["trials.csv"]


def test_a_published_model_holds_no_state_of_the_training(tmp_path: Path) -> None:
    made = trial(0, 0.5)
    checkpoint(tmp_path, made, 1)
    write_model(tmp_path / "model", tmp_path, made, 1)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["model.safetensors"]
    assert (tmp_path / made.checkpoints[1] / "training_state.pt").exists(), "the checkpoint itself is left as it is"


@pytest.mark.parametrize(("epochs", "chosen"), [((1, 2, 3, 4), 2), ((1, 3, 4), 3), ((1, 4), 4), ((1,), 1)])
def test_the_model_is_that_of_the_best_epoch_that_has_a_checkpoint(tmp_path: Path, epochs: tuple[int, ...], chosen: int) -> None:
    made = trial(0, 0.1, 0.5, 0.4, 0.2)
    for epoch in epochs:
        checkpoint(tmp_path / "state", made, epoch)
    best = outputs(tmp_path, made)
    assert (best["epochs"], best["model_epoch"]) == (2, chosen)
    assert (tmp_path / "results/model/model.safetensors").read_text() == f"00000 after epoch {chosen}"


def test_a_checkpoint_that_is_gone_from_the_disk_is_passed_over(tmp_path: Path) -> None:
    made = trial(0, 0.1, 0.5)
    checkpoint(tmp_path / "state", made, 1)
    made.checkpoints[2] = "checkpoints/deleted"
    assert outputs(tmp_path, made)["model_epoch"] == 1


def test_without_a_checkpoint_the_folder_says_so_and_holds_no_older_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_text("of an earlier winner")
    write_model(tmp_path / "model", tmp_path, trial(0, 0.5), None)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["README.txt"]


def test_outputs_that_are_written_again_are_the_same(tmp_path: Path) -> None:
    winner = trial(0, 0.5)
    checkpoint(tmp_path / "state", winner, 1)
    files = []
    for _ in range(2):
        outputs(tmp_path, winner, trial(1, 0.4))
        files.append({path: path.read_bytes() for path in (tmp_path / "results").rglob("*") if path.is_file()})
    assert files[0] == files[1]


def confirmed(tmp_path: Path, *trials: Trial) -> dict[str, Any]:
    goal, winner = Goal("s", "accuracy", "max"), trial(9, 0.1, 0.9, config={"lr": 0.1})
    best = best_of(sweep(winner), goal, Provenance())
    write_yaml(tmp_path / "confirmed.yaml", to_json(confirmation_of(sweep(*trials), goal, best, "test", "a note")))
    return read_yaml(tmp_path / "confirmed.yaml")


def test_a_confirmation_gives_every_seed_and_their_mean_and_spread(tmp_path: Path) -> None:
    # The sample standard deviation of 0.5, 0.6 and 0.7 is 0.1 exactly: the sum of squares 0.02 over n - 1 = 2.
    found = confirmed(tmp_path, trial(0, 0.1, 0.5), trial(1, 0.6), trial(2, 0.9, 0.7), trial(3, 0.45, trial_id="published"))
    assert found.pop("mean") == pytest.approx(0.6)
    assert found.pop("standard_deviation") == pytest.approx(0.1)
    assert found == {
        "sweep": "s",
        "metric": {"name": "accuracy", "mode": "max"},
        "config": {"lr": 0.1},
        "epochs": 2,
        "evaluated_on": "test",
        "note": "a note",
        "seeds": [
            {"seed": 100, "value": 0.5, "error": None},
            {"seed": 101, "value": 0.6, "error": None},
            {"seed": 102, "value": 0.7, "error": None},
        ],
        "n": 3,
        "published_model": {"accuracy": 0.45},
    }


def test_the_metrics_that_the_sweep_lists_have_means_over_the_seeds_that_did_not_fail() -> None:
    runs = [trial(0, 0.5), trial(1, 0.7), trial(2, 0.9, error="its process died"), trial(3, 0.1, trial_id="published")]
    means = confirmed_means(sweep(*runs), ["accuracy", "f1"])
    assert means == {"accuracy": ConfirmedMean(pytest.approx(0.6), pytest.approx(0.1 * 2**0.5))}
    assert confirmed_means(sweep(runs[0]), ["accuracy"]) == {"accuracy": ConfirmedMean(0.5, None)}


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    found = confirmed(tmp_path, trial(0, 0.5))
    assert (found["n"], found["mean"], found["standard_deviation"], found["published_model"]) == (1, 0.5, None, None)


def test_a_seed_that_failed_is_listed_and_does_not_count(tmp_path: Path) -> None:
    found = confirmed(tmp_path, trial(0, 0.5), trial(1, 0.9, error="its process died"), trial(2, 0.7))
    assert found["seeds"][1] == {"seed": 101, "value": None, "error": "its process died"}
    assert (found["n"], found["mean"]) == (2, pytest.approx(0.6))


def test_where_every_seed_failed_nothing_is_confirmed_and_each_reason_is_kept(tmp_path: Path) -> None:
    found = confirmed(tmp_path, trial(0, error="raised"), trial(1, error="too"), trial(2, 0.5, trial_id="published"))
    assert [(seed["value"], seed["error"]) for seed in found["seeds"]] == [(None, "raised"), (None, "too")]
    assert (found["n"], found["mean"], found["standard_deviation"]) == (0, None, None)
    assert found["published_model"] == {"accuracy": 0.5}


def test_several_objectives_have_columns_and_a_front(tmp_path: Path) -> None:
    trials = [trial(number, 0.1, accuracy) for number, accuracy in enumerate((0.9, 0.5, 0.4))]
    for made, size in zip(trials, (30.0, 10.0, 20.0), strict=True):
        for result in made.results:
            result.metrics["size"] = size
    made_sweep = sweep(*trials, trial(3, error="out of memory"))
    made_sweep.set_goal({}, TWO, "size")
    best = write_outputs(
        tmp_path / "results", tmp_path / "state", made_sweep, Goal("s", "accuracy", "max"), Provenance("0.1.0", "abc", "e")
    )
    with (tmp_path / "results/trials.csv").open(newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    columns = [*COLUMNS[:3], "size", *COLUMNS[3:], "pareto"]
    assert list(table[0]) == ["trial_id", "status", "config/lr", *columns]
    assert [[row[key] for key in ("accuracy", "size", "epoch_of_metric", "pareto")] for row in table] == [
        ["0.9", "30.0", "2", "true"],
        ["0.5", "10.0", "2", "true"],
        ["0.4", "20.0", "2", "false"],
        ["", "", "", "false"],
    ]
    written = read_yaml(tmp_path / "results/best.yaml")
    assert (written["trial_id"], written["metric"], written["choose"]) == (
        "00001",
        {"name": "accuracy", "mode": "max", "value": 0.5},
        "size",
    )
    assert written["objectives"] == [{"metric": "accuracy", "mode": "max"}, {"metric": "size", "mode": "min"}]
    assert written["front"] == [
        {"trial_id": "00000", "config": {"lr": 0.1}, "epochs": 2, "metrics": {"accuracy": 0.9, "size": 30.0}},
        {"trial_id": "00001", "config": {"lr": 0.1}, "epochs": 2, "metrics": {"accuracy": 0.5, "size": 10.0}},
    ]
    assert BestResult.read(tmp_path / "results/best.yaml") == best


def test_an_objective_that_no_trial_has_reported_is_named(tmp_path: Path) -> None:
    made_sweep = sweep(trial(0, 0.5), trial(1, 0.6))
    made_sweep.set_goal({}, TWO)
    with pytest.raises(
        RaysweepError, match=r"^s: no trial has reported size, which is one of sweeps\.s\.objectives\. Take it out of the objectives, or"
    ):
        write_outputs(tmp_path / "results", tmp_path / "state", made_sweep, Goal("s", "accuracy", "max"), Provenance("0.1.0", "abc", "e"))
