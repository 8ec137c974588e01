"""What the report finds in a sweep: ties, luck, edges, splits, seeds, and the course of the sweep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysweep.record.events import Failure, FusionPlan, NotFused
from raysweep.record.file import Record, read_sweep
from raysweep.report.inputs import Inputs
from raysweep.report.notes import Note, notes, tied
from raysweep.report.report import figures_of, render
from recorded import header
from reporting import inputs_of, made_up

ROOT = Path(__file__).resolve().parents[3]


def note(inputs: Inputs, start: str) -> Note:
    """The one note whose title starts so."""
    found = [n for n in notes(inputs) if n.title.startswith(start)]
    assert len(found) == 1, [n.title for n in notes(inputs)]
    return found[0]


def titles(inputs: Inputs) -> list[str]:
    return [n.title for n in notes(inputs)]


def with_values(folder: Path, values: list[float], mode: str = "max", deviation: float | None = 0.01) -> Inputs:
    """Return a sweep of one epoch whose trials reported `values`, confirmed with that standard deviation."""
    path = folder / "record.jsonl"
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
    inputs = inputs_of(path, read_sweep(path))
    return replace(inputs, confirmed=replace(inputs.confirmed, standard_deviation=deviation))


# --- ties -----------------------------------------------------------------------------------------------------------------------


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


def test_a_winner_that_stands_alone_is_said_to(tmp_path: Path) -> None:
    assert note(with_values(tmp_path, [0.47, 0.3]), "The winner stands alone").kind == "good"


def test_one_seed_cannot_tell_a_tie(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, {"seeds": 1})
    assert inputs.confirmed.standard_deviation is None
    assert tied(inputs) == []
    assert "confirm.seeds" in note(inputs, "How much luck").text


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


# --- edges of the search space --------------------------------------------------------------------------------------------------


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
    inputs = made_up(tmp_path, num_trials=2, search_space={"x": space})
    inputs.winner.config["x"] = value
    found = [n for n in notes(inputs) if n.title.startswith("x ")]
    assert [n.title for n in found] == ([expected] if expected else [])
    if expected and "edge" in expected:
        assert "widen it" in found[0].text
        assert found[0].kind == "warn"


def test_a_value_below_a_range_that_was_changed_on_the_way_is_no_fault_of_the_report(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=2)
    inputs.winner.config["lr"] = 0
    assert not any(title.startswith("lr") for title in titles(inputs))


# --- splits, seeds, course ------------------------------------------------------------------------------------------------------


def test_split_sizes_and_the_standard_error_of_an_accuracy(tmp_path: Path) -> None:
    text = note(with_values(tmp_path, [0.5, 0.1]), "Split sizes").text
    assert "Trained on 45,000, compared on 5,000 validation examples; 10,000 test examples were kept for the confirmation" in text
    assert "standard error of 0.0071" in text  # √(0.5 · 0.5 / 5000)


def test_seeds_are_said_for_models_and_for_trainables(tmp_path: Path) -> None:
    text = note(made_up(tmp_path / "a", seed=7), "What was seeded").text
    assert text.startswith("From seed 7: the configurations, the validation split (seed 0), each trial’s own seed")
    own = made_up(tmp_path / "b", {"on": "validation"}, dataset=None, model=None, optimizer=None, loss=None, trainable="train.py:train")
    assert "RAYSWEEP_SEED" in note(own, "What was seeded").text
    assert "validation split" not in note(own, "What was seeded").text
    assert note(own, "The trainable brings its own data").kind == "info"
    assert "not a test result" in note(own, "There is no test result").text


def test_an_unfinished_sweep_is_called_so(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, running=2, outcome="incomplete")
    assert "2 of 20 planned trials" in note(inputs, "The sweep is not finished").text
    assert "Not finished." in render(inputs, figures_of(inputs), ROOT)


def test_interruptions_are_told_and_their_gaps_left_out_of_the_time(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, interruptions=2, max_epochs=4)
    whole = made_up(tmp_path / "whole", max_epochs=4)
    text = note(inputs, "Interruptions").text
    assert text.startswith("The sweep ran in 3 sessions, 2 of which were cut off.")
    assert "Interruptions" not in titles(whole)
    clock = inputs.clock
    assert clock.total_s <= whole.clock.total_s  # an hour was between them each time
    assert clock.total_s > 0.5 * whole.clock.total_s
    ends = [attempt.end_s for attempt in inputs.attempts]
    assert max(ends) <= clock.total_s
    assert all(a.start_s <= a.end_s for a in inputs.attempts)
    assert sum(a.state == "continued later" for a in inputs.attempts) == sum(len(t.attempts) - 1 for t in inputs.trials) > 0


def test_lost_nodes_full_gpus_and_second_attempts_are_told(tmp_path: Path) -> None:
    inputs = made_up(tmp_path)
    sweep = inputs.sweep
    for event in (
        {"event": "node", "node": "n7", "state": "lost"},
        {"event": "node", "node": "n8", "state": "joined"},
        {"event": "gpu_share", "gpu": 0.1, "used_mb": 7100, "total_mb": 81559},
        {"event": "gpu_share", "gpu": 0.2},
    ):
        sweep.apply(event | {"at": "2026-03-01T10:00:00.000Z"})
    first, second, *_ = inputs.trials
    first.failures.append(Failure("its node was lost", counted=False, at=""))
    second.failures.append(Failure("it hung", counted=True, at=""))
    assert note(inputs, "1 node lost").text.startswith("The sweep went on without n7. 1 trial had to move")
    assert "took 7,100 of 81,559 MB" in note(inputs, "GPUs were shared").text
    assert "each trial got 0.2 of a GPU" in note(inputs, "GPUs were too full").text
    assert note(inputs, "1 trial tried again").kind == "info"


def test_how_trials_were_trained_is_told(tmp_path: Path) -> None:
    inputs = made_up(tmp_path)
    assert not [found for found in notes(inputs) if "trained" in found.title]
    inputs.sweep.fused = NotFused("it draws random numbers in training, such as for dropout")
    assert "such as for dropout" in note(inputs, "Trials were trained one by one").text
    inputs.sweep.fused = FusionPlan(2, 10, 2.57, "compiled in 27 s")
    text = note(inputs, "Trials were trained together").text
    assert text.startswith("Up to 10 at a time in each of 2 processes, 2.6 times as fast as one by one (compiled in 27 s).")


def test_trials_that_were_stopped_early_are_counted(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, max_epochs=8, scheduler={"name": "asha"})
    stopped = sum(t.status == "STOPPED" for t in inputs.trials)
    assert stopped > 0
    assert note(inputs, f"{stopped} trial").kind == "info"
