from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raysweep.report.charts.objectives import front, hypervolume_steps
from raysweep.report.report import figures_of, render
from reporting import made_up, note, titles

OBJECTIVES = [{"metric": "accuracy", "mode": "max"}, {"metric": "latency_ms", "mode": "min"}, {"metric": "energy", "mode": "min"}]


def objectives(folder: Path, number: int = 2, **sweep: Any) -> Any:
    return made_up(folder, objectives=OBJECTIVES[:number], **sweep)


def test_the_hypervolume_rises_until_the_end(tmp_path: Path) -> None:
    inputs = objectives(tmp_path)
    steps = hypervolume_steps(inputs)
    assert [at_s for at_s, _ in steps] == sorted(at_s for at_s, _ in steps)
    volumes = [volume for _, volume in steps]
    assert volumes == sorted(volumes)
    assert 0 <= volumes[0] < volumes[-1] < 1
    assert steps[-1][0] == inputs.clock.total_s


def test_the_figure_marks_the_front_of_all_candidates(tmp_path: Path) -> None:
    inputs = objectives(tmp_path, failed={3: "out of memory"})
    values = front(inputs, 1)["data"]["values"]
    assert len(values) == 19
    assert {value["trial"] for value in values if value["front"]} == {point.trial_id for point in inputs.best.front}


@pytest.mark.parametrize(("number", "places"), [(2, {"front1"}), (3, {"front1", "front2"})])
def test_each_further_objective_has_a_figure_against_the_first(tmp_path: Path, number: int, places: set[str]) -> None:
    inputs = objectives(tmp_path, number)
    figures = figures_of(inputs)
    assert {place for place in figures.specs if place.startswith("front")} == places
    page = render(inputs, figures, tmp_path)
    assert all(f'id="chart-{place}"' in page for place in (*places, "hypervolume"))
    assert page.count('<tr class="winner">') == 1
    assert f'<th scope="col" class="number">{OBJECTIVES[number - 1]["metric"]}</th>' in page


def test_the_page_of_one_objective_has_no_front(tmp_path: Path) -> None:
    inputs = made_up(tmp_path)
    figures = figures_of(inputs)
    assert not any(place.startswith(("front", "hypervolume")) for place in figures.specs)
    assert 'id="front"' not in render(inputs, figures, tmp_path)


@pytest.mark.parametrize(
    ("choose", "reason"), [(None, "it has the best accuracy"), ("latency_ms", "it has the best latency_ms"), ("knee", "it is the knee")]
)
def test_a_note_says_how_the_best_was_chosen(tmp_path: Path, choose: str | None, reason: str) -> None:
    inputs = objectives(tmp_path, choose=choose)
    found = note(inputs, f"{len(inputs.best.front)} of 20 trials are on the front")
    assert f"{inputs.best.trial_id} was chosen because {reason}" in found.text
    assert "looks for high accuracy and low latency_ms" in found.text
    assert not [title for title in titles(inputs) if "tie" in title or "optimistic" in title or "stands alone" in title]
