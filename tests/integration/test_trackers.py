"""What other tools show of trials: TensorBoard's event files (TFRecords of protocol buffers), MLflow's runs, and those of Weights & Biases."""

from __future__ import annotations

import json
import logging
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from raysweep.tune.trackers import Lenient, mlflow
from raysweep.tune.trial import RESERVED_KEY, TrialFacts
from sweeping import ENV, REPOSITORY, Project, sweep_of

# Reads what a server would show of MLflow's runs.
READ_MLFLOW = """
import json, sys
from mlflow.tracking import MlflowClient
client = MlflowClient(sys.argv[1])
(experiment,) = client.search_experiments(filter_string="name = 's'")
runs = client.search_runs([experiment.experiment_id])
def shown(run):
    history = client.get_metric_history(run.info.run_id, "score")
    return [run.data.params, [metric.value for metric in history], run.info.status]
print(json.dumps({run.info.run_name: shown(run) for run in runs}))
"""


def events_in(path: Path) -> Iterator[Event]:
    content, at = path.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        yield Event.FromString(content[at + 12 : at + 12 + length])
        at += 12 + length + 4


def scalars_of(folder: Path, tag: str) -> dict[int, float]:
    """The values under a tag by their steps, of all files of a trial."""
    events = (event for path in sorted(folder.glob("events.out.tfevents.*")) for event in events_in(path))
    return {event.step: round(value.simple_value, 5) for event in events for value in event.summary.value if value.tag == tag}


def test_each_trial_has_its_curve_and_its_hyper_parameters_and_those_added_later_too(project: Project) -> None:
    values = {"max_epochs": 3, "tensorboard": True}
    project.configure(sweeps={"s": sweep_of("climb", num_samples=2, **values)})
    assert project.run("run_sweep", "s").returncode == 0
    folder = project.folder / "state/s/tensorboard"
    files = sorted(folder.rglob("events*"))
    project.configure(sweeps={"s": sweep_of("climb", num_samples=3, **values)})
    assert project.run("run_sweep", "s").returncode == 0
    assert set(files) < set(folder.rglob("events*"))
    record = project.record("s")
    assert sorted(path.name for path in folder.iterdir()) == sorted(record.trials)
    for trial_id, trial in record.trials.items():
        expected = {result.epoch: round(result.metrics["score"], 5) for result in trial.results}
        assert len(expected) == 3
        assert scalars_of(folder / trial_id, "ray/tune/score") == expected
        events = [event for path in (folder / trial_id).iterdir() for event in events_in(path)]
        assert any("hparams" in value.tag for event in events for value in event.summary.value)


def test_mlflow_and_wandb_have_a_run_for_each_trial(project: Project) -> None:
    sweep = sweep_of(
        "climb", num_samples=2, max_epochs=3, search_space={"x": {"uniform": [0, 1]}, "net": {"width": 3}}, mlflow="local", wandb="mine"
    )
    project.configure(env=ENV | {"requirements": str(REPOSITORY / "workflow/envs/trackers.in")}, sweeps={"s": sweep})
    run = project.run("run_sweep", "s")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "is told no more" not in run.stdout + run.stderr
    argv = [sys.executable, "-c", READ_MLFLOW, f"sqlite:///{project.folder / 'state/s/mlflow.db'}"]
    shown = json.loads(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    trials = project.record("s").trials
    assert shown == {
        trial_id: [{"x": str(trial.config["x"]), "net/width": "3"}, [result.metrics["score"] for result in trial.results], "FINISHED"]
        for trial_id, trial in trials.items()
    }
    runs = list((project.folder / "state/s/wandb/wandb").glob("offline-run-*/run-*.wandb"))
    identity = project.record("s").header.identity[:8]
    assert sorted(path.stem for path in runs) == sorted(f"run-s-{identity}-{trial_id}" for trial_id in trials)
    assert all(path.stat().st_size > 0 for path in runs)


def test_one_that_fails_is_told_no_more_and_the_sweep_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    told: list[Any] = []

    class Broken:
        def log_trial_start(self, trial: Any) -> None:
            told.append((str(trial), trial.config))
            raise ConnectionError("no such\nhost")

    tracker = Lenient("MLflow", Broken())  # type: ignore[arg-type]
    trial: Any = SimpleNamespace(trial_id="00003", config={"x": 1, RESERVED_KEY: TrialFacts(3, "search", False)})
    with caplog.at_level(logging.WARNING):
        tracker.log_trial_start(trial)
        tracker.log_trial_start(trial)
    assert told == [("00003", {"x": 1})]
    assert caplog.messages == ["MLflow is told no more of this sweep, which goes on: ConnectionError: no such host"]


def test_a_server_that_never_answers_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # the user's own setting counts
    with socket.create_server(("127.0.0.1", 0)) as silent:
        tracker = Lenient("MLflow", mlflow(f"http://127.0.0.1:{silent.getsockname()[1]}", "s", tmp_path))
        with caplog.at_level(logging.WARNING):
            tracker.setup()
    assert tracker.has_failed
    [message] = [message for message in caplog.messages if message.startswith("MLflow is told no more of this sweep, which goes on: ")]
    assert "ReadTimeoutError" in message
