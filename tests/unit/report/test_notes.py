"""What the report finds in a sweep: edges, splits, seeds, and the course of the sweep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raysweep.common.machine import NodeSize
from raysweep.config.model import TrialResourcesConfig
from raysweep.record.events import Failure, FusionPlan, NotFused
from raysweep.record.gpu_use import GpuUse
from raysweep.report import analysis
from raysweep.report.notes import MIN_MEASURED_S, notes
from raysweep.report.report import figures_of, render
from reporting import made_up, note, titles, with_values

ROOT = Path(__file__).resolve().parents[3]


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


def test_the_standard_error_over_folds_is_that_of_all_rows(tmp_path: Path) -> None:
    inputs = with_values(tmp_path, [0.5, 0.1])
    assert inputs.data is not None
    text = note(replace(inputs, data=replace(inputs.data, folds=10)), "Split sizes").text
    assert "compared on 5,000 validation examples in fold 0 of 10; " in text
    assert "From 50,000 examples, an accuracy of 0.5 has a standard error of 0.0022" in text
    assert "validation split" not in note(replace(inputs, data=replace(inputs.data, split="time")), "What was seeded").text


def test_seeds_are_said_for_models_and_for_trainables(tmp_path: Path) -> None:
    text = note(made_up(tmp_path / "a", seed=7), "What was seeded").text
    assert text.startswith("From seed 7: the configurations, the validation split (seed 0), each trial’s own seed")
    own = made_up(tmp_path / "b", {"on": "validation"}, dataset=None, model=None, optimizer=None, loss=None, trainable="train.py:train")
    assert "RAYSWEEP_SEED" in note(own, "What was seeded").text
    assert "validation split" not in note(own, "What was seeded").text
    assert note(own, "The trainable brings its own data").kind == "info"
    assert "not a test result" in note(own, "There is no test result").text


def test_the_trials_that_a_sweep_did_not_begin_are_counted_with_the_reason(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=20, constant=0.5, no_better_for={"configurations": 5, "min_delta": 0})
    assert not any("not begun" in title for title in titles(inputs))
    inputs.sweep.sessions[-1].header = replace(inputs.header, num_trials=50)
    begun = replace(inputs, sweep=replace(inputs.sweep))  # without the header that the other has cached
    assert (begun.unfinished(), begun.not_begun()) == (0, 30)
    text = note(begun, "30 trials not begun").text
    assert "did not become better during the last 5 finished configurations. So 30 of 50 planned trials were saved" in text
    assert "With a larger end_when.no_better_for, the sweep goes on" in text
    inputs.sweep.sessions[-1].header = replace(begun.header, no_better_for=None)
    assert "The time budget was used up" in note(replace(inputs, sweep=replace(inputs.sweep)), "30 trials not begun").text
    inputs.sweep.sessions[-1].header = replace(begun.header, no_better_for=None, max_gpu_hours=0.01)
    assert "The time budget was used up" in note(replace(inputs, sweep=replace(inputs.sweep)), "30 trials not begun").text
    inputs.sweep.sessions[-1].nodes = (NodeSize("a", 2, 4),)
    text = note(replace(inputs, sweep=replace(inputs.sweep)), "30 trials not begun").text
    assert text.startswith(
        "The 0.01 GPU-hours of max_gpu_hours were used up. So 30 of 50 planned trials were saved. With a larger max_gpu_hours,"
    )


def test_what_was_known_before_is_shown_apart(tmp_path: Path) -> None:
    known = {"source": "results/old", "sha256": "0", "num_trials": 12, "best": 0.9, "num_left_out": 2}
    inputs = made_up(tmp_path, num_trials=4, warm_start=known)
    text = note(inputs, "12 trials known before").text
    assert "learnt from 12 trials of results/old, the best with accuracy 0.9. 2 other trials of the source did not fit" in text
    assert len(inputs.trials) == 4
    assert not any("known before" in title for title in titles(made_up(tmp_path / "cold")))


def test_the_epochs_that_stop_saved_are_counted(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, num_trials=4, max_epochs=8)
    before = analysis.cost(inputs)
    for trial in inputs.trials[:2]:
        trial.reason = "stop"
        del trial.results[5:]
    assert "2 of 4 trials ended before 8 epochs" in note(inputs, "2 trials ended by stop").text
    assert "6 epochs were not trained" in note(inputs, "2 trials ended by stop").text
    assert (before.epochs_spared, analysis.cost(inputs).epochs_spared) == (0, 6)


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


def test_that_trials_went_on_to_more_epochs_is_told(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, max_epochs=2, interruptions=1, scheduler={"name": "asha", "grace_period": 1, "reduction_factor": 2})
    assert "Finished trials went on" not in titles(inputs)
    trial = next(trial for trial in inputs.trials if trial.status == "TERMINATED")
    inputs.sweep.apply({"event": "reopen", "at": "2026-01-01T00:00:00Z", "trial": trial.trial_id})
    assert note(inputs, "Finished trials went on").text == "1 finished trial went on, because stop had changed."
    last = inputs.sessions[-1]
    last.header = replace(last.header, max_epochs=4)
    assert note(inputs, "Finished trials went on").text == (
        "1 finished trial went on from 2 to 4 epochs (max_epochs). A trial that the scheduler had stopped before stayed stopped."
    )


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


@pytest.mark.parametrize(("percent", "is_told"), [(12, True), (49.9, True), (50, False)])
def test_gpus_that_were_mostly_idle_are_told(tmp_path: Path, percent: float, is_told: bool) -> None:
    inputs = made_up(tmp_path)
    title = f"On average, a GPU was busy for {percent:.0f} % of the time"
    measured = replace(inputs, gpu_use=(GpuUse("7-n", "n", inputs.sessions[0].at, MIN_MEASURED_S, (percent,)),))
    assert (title in titles(measured)) == is_told
    assert title not in titles(inputs)
    assert title not in titles(replace(inputs, gpu_use=(GpuUse("7-n", "n", inputs.sessions[0].at, MIN_MEASURED_S - 1, (percent,)),)))
    many = tuple(GpuUse(f"7-n{number}", "n", inputs.sessions[0].at, MIN_MEASURED_S / 9, (percent,)) for number in range(10))
    assert title not in titles(replace(inputs, gpu_use=many)), "ten nodes have measured the start of a sweep"
    if is_told:
        assert "The trials asked for no GPU" in note(measured, title).text
        measured.sessions[0].header = replace(measured.header, trial_resources=TrialResourcesConfig(1, 0.5))
        measured = replace(measured)
        assert "set trial_resources.gpu to a smaller number, or to auto" in note(measured, title).text
        measured.sessions[0].header = replace(measured.header, trial_resources=TrialResourcesConfig(1, "auto"))
        assert "trial_resources.gpu" not in note(replace(measured), title).text
        measured.sweep.fused = FusionPlan(1, 10, 2.0, "vmap")
        assert title not in titles(replace(measured)), "several trials share a stack already"


def test_how_trials_were_trained_is_told(tmp_path: Path) -> None:
    inputs = made_up(tmp_path)
    assert not [found for found in notes(inputs) if "trained" in found.title]
    inputs.sweep.fused = NotFused("it draws random numbers in training, such as for dropout")
    assert "such as for dropout" in note(inputs, "Trials were trained one by one").text
    inputs.sweep.fused = FusionPlan(2, 10, 2.57, "compiled in 27 s")
    text = note(inputs, "Trials were trained together").text
    assert text.startswith("Up to 10 at a time in each of 2 processes, 2.6 times as fast as one by one (compiled in 27 s).")
    assert "earlier sessions" not in text


def test_sessions_that_trained_otherwise_are_told(tmp_path: Path) -> None:
    inputs = made_up(tmp_path)
    [session] = inputs.sweep.sessions
    ways = (
        FusionPlan(2, 10, 1.4, "eager", "eager"),
        NotFused("no two of 1 share a device"),
        None,
        FusionPlan(2, 10, 3, "loaded", "compiled"),
    )
    inputs.sweep.sessions[:] = [replace(session, fused=fused) for fused in ways]
    inputs.sweep.fused = ways[-1]
    text = note(inputs, "Trials were trained together").text
    assert "Earlier sessions trained their trials in another way (one by one, together with eager steps), so" in text


def test_trials_that_were_stopped_early_are_counted(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, max_epochs=8, scheduler={"name": "asha"})
    stopped = sum(t.status == "STOPPED" for t in inputs.trials)
    assert stopped > 0
    assert note(inputs, f"{stopped} trial").kind == "info"
