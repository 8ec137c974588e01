"""Event files of trials, read as TensorBoard reads them: TFRecords of protocol buffers."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event

from sweeping import Project, sweep_of


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
