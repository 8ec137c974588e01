from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune

from raysweep.tune import private
from raysweep.tune.trial import GPU_MEMORY_MB, call, check_finite, shield_reports


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_is_an_error(value: float) -> None:
    with pytest.raises(FloatingPointError, match=r"reported score = .*, which is not finite"):
        check_finite("score", {"score": value})


@pytest.mark.parametrize("metrics", [{}, {"score": 1}, {"score": "nan"}, {"score": None}, {"score": 0.5, "loss": math.nan}])
def test_only_the_metric_is_checked_and_only_where_it_is_a_number(metrics: dict[str, Any]) -> None:
    check_finite("score", metrics)


class SessionOfTune(SimpleNamespace):
    """Stands in for Tune's session of a trial, and keeps the reports that reach Tune."""

    def report(self, metrics: dict[str, Any], checkpoint: Any = None) -> None:
        if isinstance(checkpoint, tune.Checkpoint):
            checkpoint = sorted(path.name for path in Path(checkpoint.path).iterdir())  # Tune copies the files before `report` returns
        self.reports.append((metrics, checkpoint))


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SessionOfTune:
    """Return the session of a trial, on a machine without nvidia-smi."""
    session = SessionOfTune(reports=[], get_state={private.COPIES: tmp_path}.get)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(private, "_TrainSession", SessionOfTune)
    monkeypatch.setattr(private, "get_session", lambda: session)
    return session


def test_a_report_that_is_not_finite_never_reaches_tune(session: SessionOfTune) -> None:
    shield_reports(["outer/score"], measures_gpu=False)
    session.report({"outer": {"score": 0.5}}, checkpoint="folder")
    with pytest.raises(FloatingPointError):
        session.report({"outer": {"score": math.nan}}, checkpoint="folder")
    assert session.reports == [({"outer": {"score": 0.5}}, "folder")]


def test_the_count_of_reports_is_tunes_own_whatever_a_function_reports(session: SessionOfTune) -> None:
    shield_reports(["score"], measures_gpu=False)
    with pytest.warns(UserWarning, match="training_iteration"):
        session.report({"score": 0.5, "training_iteration": 0})
    assert session.reports == [({"score": 0.5}, None)]


def test_each_trial_of_a_worker_has_its_own_check(session: SessionOfTune) -> None:
    shield_reports(["score"], measures_gpu=False)
    shield_reports(["loss"], measures_gpu=False)
    session.report({"score": math.nan, "loss": 1.0})
    assert len(session.reports) == 1, "the check of the trial before is gone"


def test_the_first_report_says_what_the_trial_takes_of_its_gpu(session: SessionOfTune) -> None:
    shield_reports(["score"], measures_gpu=True)
    for _ in range(2):
        session.report({"score": 1.0})
    assert [GPU_MEMORY_MB in metrics for metrics, _ in session.reports] == [True, False]


def test_a_report_of_ray_train_has_the_checkpoint_whose_path_it_names(session: SessionOfTune, tmp_path: Path) -> None:
    copy = tmp_path / "checkpoint_7"
    copy.mkdir()
    (copy / "weights").touch()
    shield_reports(["score"], measures_gpu=False)
    session.report({"score": 1.0, "checkpoint_path": "/storage/checkpoint_7"})
    session.report({"score": 2.0, "checkpoint_path": "/storage/checkpoint_8"}, checkpoint="folder")  # a metric of the user's
    session.report({"score": 3.0, "checkpoint_path": ""})
    assert session.reports == [
        ({"score": 1.0, "checkpoint_path": "/storage/checkpoint_7"}, ["weights"]),
        ({"score": 2.0, "checkpoint_path": "/storage/checkpoint_8"}, "folder"),
        ({"score": 3.0, "checkpoint_path": ""}, None),
    ]
    assert not copy.exists()


def parse(config: dict[str, Any]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.parse_args(config["arguments"])


@pytest.mark.parametrize(
    ("function", "config", "reason"),
    [
        (
            parse,
            {"arguments": []},
            "the following arguments are required: --data$",
        ),
        (
            parse,
            {"arguments": ["--data", "a", "--node-ip-address=1"]},
            "^argparse ended the function, and a trial has no command line .*: unrecognized arguments: --node-ip-address=1$",
        ),
        (sys.exit, 3, r"^the function ended with sys.exit\(3\)$"),
        (sys.exit, "no data", r"^the function ended with sys.exit\('no data'\)$"),
        (sys.exit, True, r"^the function ended with sys.exit\(True\)$"),
    ],
)
def test_a_function_that_exits_says_why(function: Callable[..., Any], config: Any, reason: str) -> None:
    with pytest.raises(RuntimeError, match=reason):
        call(function, config)


@pytest.mark.parametrize("code", [None, 0, False])
def test_an_exit_without_an_error_is_the_end_of_the_function(code: Any) -> None:
    assert call(sys.exit, code) is None
    assert call(parse, {"arguments": ["--help"]}) is None
    assert call(lambda config: {"score": config}, 1) == {"score": 1}


def test_a_class_is_no_trainable() -> None:
    with pytest.raises(TypeError, match="Trainable is a class, but a trainable is a function"):
        call(tune.Trainable, {})


def test_other_errors_of_a_function_stay_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError):
        call(lambda config: 1 / config, 0)


def test_each_compared_metric_must_be_finite(session: SessionOfTune) -> None:
    shield_reports(["score", "latency"], measures_gpu=False)
    with pytest.raises(FloatingPointError, match="reported latency = nan"):
        session.report({"score": 1.0, "latency": math.nan})
    assert session.reports == []
