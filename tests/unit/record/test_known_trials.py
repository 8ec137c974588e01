from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from raysweep.record.events import SessionHeader, WarmStart
from raysweep.record.known_trials import KnownTrial, KnownTrials, as_finished, read_known, write_known

KNOWN = KnownTrials("old.csv", (KnownTrial({"x": 0.5, "net": {"kind": "a"}}, 0.7), KnownTrial({"x": 1, "net": {"kind": "b"}}, 0.2)), 3)


def test_known_trials_reach_the_driver_as_finished_trials_that_no_sweep_has(tmp_path: Path) -> None:
    write_known(KNOWN, tmp_path)
    trials = read_known(tmp_path, "score")
    assert [(trial.index, trial.config, trial.status, trial.results[0].metrics) for trial in trials] == [
        (-1, {"x": 0.5, "net": {"kind": "a"}}, "TERMINATED", {"score": 0.7}),
        (-2, {"x": 1, "net": {"kind": "b"}}, "TERMINATED", {"score": 0.2}),
    ]
    assert trials == as_finished(KNOWN.trials, "score")
    assert [trial.trial_id for trial in as_finished(KNOWN.trials[1:], "score")] == [trials[1].trial_id], "an id follows from the content"


def test_the_session_describes_them() -> None:
    header = KNOWN.header("max")
    assert (header.source, header.num_trials, header.best, header.num_left_out) == ("old.csv", 2, 0.7, 3)
    assert KNOWN.header("min").best == 0.2
    assert header.sha256 == replace(KNOWN, source="moved.csv").header("max").sha256
    assert header.sha256 != replace(KNOWN, trials=KNOWN.trials[:1]).header("max").sha256
    assert SessionHeader.from_json({"warm_start": vars(header)}).warm_start == header
    assert isinstance(header, WarmStart)
    assert SessionHeader.from_json({}).warm_start is None
