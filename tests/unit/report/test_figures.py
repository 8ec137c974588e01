"""The figures as files."""

from __future__ import annotations

import csv
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from raysweep.report.report import figures_of, write_report
from reporting import made_up

ROOT = Path(__file__).resolve().parents[3]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_all_figures_are_files_too_in_colours_and_with_their_data(tmp_path: Path) -> None:
    hostile = 'a<b> "b" var(--no) (0).c'
    space = {"lr": {"loguniform": [1e-4, 1e-1]}, hostile: {"uniform": [0, 1]}}
    confusion = {"confusion": [[8, 1, *[0] * 8], *[[1] * 10] * 9]}
    inputs = made_up(
        tmp_path, {"confirmed": {"predictions": confusion}}, num_trials=40, max_epochs=4, scheduler={"name": "asha"}, search_space=space
    )
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/of an earlier run.svg").touch()
    write_report(inputs, tmp_path / "report.html", tmp_path / "figures", ROOT)
    specs = figures_of(inputs).specs
    drawn = sorted((tmp_path / "figures").glob("*.svg"))
    assert len(drawn) == len(specs)
    assert {"key0_lr.svg", "contour.svg", "rungs.svg", "timeline.svg"} <= {path.name for path in drawn}
    for path in drawn:
        assert len(list(ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}path"))) > 2
        assert "var(--" not in path.read_text(encoding="utf-8").replace("var(--no)", "")
    trials = rows(tmp_path / "figures/trials.csv")
    assert {row["trial"]: float(row["config/lr"]) for row in trials} == {t.trial_id: t.config["lr"] for t in inputs.trials}
    assert f"config/{hostile}" in trials[0]
    cells = rows(tmp_path / "figures/confusion.csv")
    assert len(cells) == 100
    assert cells[0] == {"true": "airplane", "predicted": "airplane", "rows": "8", "share": "0.8889"}
    assert sum(float(row["share"]) for row in rows(tmp_path / "figures/importance.csv")) == pytest.approx(1, abs=1e-3)
    assert sum(int(row["trials"]) for row in rows(tmp_path / "figures/rungs.csv") if row["fate"] == "stopped there") == sum(
        trial.status == "STOPPED" for trial in inputs.trials
    )
