"""The failed trials by cause."""

from __future__ import annotations

from pathlib import Path

from raysweep.report.failures import failures
from raysweep.report.notes import notes
from reporting import made_up


def test_failures_are_grouped_by_cause_whatever_the_numbers_in_it(tmp_path: Path) -> None:
    inputs = made_up(tmp_path, failed={1: "out of memory: 12 MiB", 2: "killed", 5: "out of memory: 77 MiB"})
    assert [(f.cause, [t.trial_id for t in f.trials]) for f in failures(inputs.trials)] == [
        ("out of memory: 12 MiB", ["00001", "00005"]),
        ("killed", ["00002"]),
    ]
    [text] = [note.text for note in notes(inputs) if note.title == "3 trials failed"]
    assert "3 of 20 trials" in text
