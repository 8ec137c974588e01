"""What the report finds in the ranking of the trials: ties, luck, and a confirmation that failed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from raysweep.record.events import Provenance
from raysweep.record.file import Record, read_sweep
from raysweep.record.outputs import best_of
from raysweep.record.results import Goal
from raysweep.report.ranking import tied
from raysweep.report.report import figures_of, render
from recorded import header
from reporting import inputs_of, made_up, note, titles, with_values

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("epochs", "is_told"), [(2, True), (1, False)])
def test_a_best_epoch_before_the_end_of_the_schedule_is_told(tmp_path: Path, epochs: int, is_told: bool) -> None:
    title = "The best epoch lies inside the learning-rate schedule"
    recipe = {"schedule": {"name": "cosine", "epochs": epochs}}
    inputs = made_up(tmp_path, num_trials=2, training=recipe, scheduler={"name": "asha"})
    assert inputs.best.epochs == 1
    assert (title in titles(inputs)) == is_told
    if is_told:
        text = note(inputs, title).text
        assert "is 2 epochs long, and the best value is of epoch 1. The learning rate was then 50 % of lr." in text
        assert "The scheduler asha compared trials before the end of their schedules." in text


def test_a_function_may_call_a_key_of_its_configuration_training(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=2, model=None, trainable="user.py:train")
    inputs.winner.config["training"] = "full"
    assert not [title for title in titles(inputs) if "schedule" in title]


def test_a_value_exactly_one_standard_deviation_below_is_a_tie_and_one_beyond_is_not(tmp_path: Path) -> None:
    inputs = with_values(tmp_path, [0.47, 0.46, 0.459])
    assert [trial.trial_id for trial, _ in tied(inputs)] == ["00001"]
    found = note(inputs, "It is a tie")
    assert found.kind == "warn"
    assert "On validation, 1 of the other 2 trials lies within one standard deviation" in found.text
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


@pytest.mark.parametrize(
    ("has_folds", "title", "winner"),
    [(False, "Each configuration was trained with 2 seeds", "00001"), (True, "Each configuration was trained on 2 folds", "00000")],
)
def test_the_spread_of_seeds_or_folds_is_told(tmp_path: Path, has_folds: bool, title: str, winner: str) -> None:
    path = tmp_path / "record.jsonl"
    with Record(path) as record:
        record.write("session", sweep=header(num_trials=4, repeats=2, has_folds=has_folds), host="h", pid=1, nodes=[])
        for number, value in enumerate((0.4, 0.6, 0.3, 0.3)):
            trial, (index, repeat) = f"{number:05d}", divmod(number, 2)
            record.write("trial", trial=trial, index=index, repeat=repeat, seed=number, config={"lr": index, "batch_size": 8})
            record.write("start", trial=trial, node="n", from_epoch=0)
            record.write("result", trial=trial, epoch=1, metrics={"accuracy": value}, time_s=1.0, node="n")
            record.write("finish", trial=trial, status="TERMINATED", error=None)
        record.write("session_end", outcome="complete")
    inputs = inputs_of(path, read_sweep(path))
    text = note(inputs, title).text
    assert f"with the standard deviation over their {title.split()[-1]}: 00000: 0.5 ± 0.14 (0.4, 0.6); 00001: 0.3 ± 0 (0.3, 0.3)." in text
    assert best_of(inputs.sweep, Goal("lenet", "accuracy", "max"), Provenance()).trial_id == winner


def test_a_winner_that_stands_alone_is_said_to(tmp_path: Path) -> None:
    assert note(with_values(tmp_path, [0.47, 0.3]), "The winner stands alone").kind == "good"


def test_one_seed_cannot_tell_a_tie(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, {"seeds": 1})
    assert inputs.confirmed.standard_deviation is None
    assert tied(inputs) == []
    assert "confirm.seeds" in note(inputs, "How much luck").text


@pytest.mark.parametrize(("failed", "title"), [([0], "A part of the confirmation"), ([0, 1, 2], "The winner is not confirmed")])
def test_a_confirmation_that_failed_is_said_with_its_reason(tmp_path: Path, failed: list[int], title: str) -> None:
    inputs = made_up(tmp_path, {"seeds": 3, "seed_errors": dict.fromkeys(failed, "ValueError: a batch of one row")})
    assert "ValueError: a batch of one row" in note(inputs, title).text
    assert render(inputs, figures_of(inputs), ROOT).count('<td class="number">failed</td>') == len(failed)


def test_one_trial_selects_nothing(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=1)
    assert note(inputs, "Nothing to compare with").kind == "warn"
    assert not any("optimistic" in title for title in titles(inputs))


def test_many_ties_are_counted_and_the_first_five_named(tmp_path: Path) -> None:
    text = note(with_values(tmp_path, [0.4] * 9), "It is a tie among 9").text
    assert "00005 (0.4) and others" in text
    assert "00006" not in text


# --- optimism -------------------------------------------------------------------------------------------------------------------


def test_the_confirmed_mean_is_held_against_the_best_validation_figure(tmp_path: Path) -> None:
    inputs = with_values(tmp_path, [0.47, 0.3])
    inputs = replace(inputs, confirmed=replace(inputs.confirmed, mean=0.45))
    assert "0.45, is 0.02 below it (trained on the validation part as well): quote the mean" in note(inputs, "The winner’s validation").text
    inputs = replace(inputs, confirmed=replace(inputs.confirmed, mean=0.48))
    assert "0.48, is 0.01 above it" in note(inputs, "The winner’s validation").text
    inputs = replace(inputs, confirmed=replace(inputs.confirmed, mean=0.47))
    assert "0.47, is equal to it: quote" in note(inputs, "The winner’s validation").text
