from __future__ import annotations

import json
import re
import resource
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysweep.common.errors import RaysweepError
from raysweep.record.events import SessionHeader
from raysweep.record.file import Record, RecordReader, decode, encode, now, read_events, read_sweep
from raysweep.record.sweep import Sweep

TRIAL = {"trial": "00000", "index": 0, "repeat": 0, "seed": 7, "config": {"lr": 0.1, "name": "größer"}}
START = {"trial": "00000", "node": "n1", "from_epoch": 0}
FINISH = {"trial": "00000", "status": "TERMINATED", "error": None}


def result(epoch: int, value: float, trial: str = "00000") -> dict[str, Any]:
    return {"trial": trial, "epoch": epoch, "metrics": {"accuracy": value}, "time_s": float(epoch), "node": "n2"}


def write(path: Path) -> list[dict[str, Any]]:
    """A record with an event of each kind; returns what was written."""
    with Record(path) as record:
        record.write("session", sweep={"name": "s"})
        record.write("trial", **TRIAL)
        record.write("start", **START)
        record.write("result", **result(1, 0.5))
        record.write("checkpoint", trial="00000", epoch=1, path="checkpoints/00000/1")
        record.write("result", **result(2, 0.4))
        record.write("finish", **FINISH)
        record.write("session_end", outcome="complete")
    return [event for event, *_ in read_events(path)]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow
@given(st.dictionaries(st.text(max_size=5).filter(lambda key: key != "crc"), values, min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_a_line_says_what_was_encoded(event: dict[str, Any], before: int) -> None:
    line, crc = encode(event, before)
    assert line.count("\n") == 1
    assert repr(decode(line, before)) == repr((event, crc)), "as text, since NaN is not equal to itself"
    assert decode(line, before ^ 1) is None, "it follows that line and no other"
    assert json.loads(line).keys() == event.keys() | {"crc"}, "other programs can read it"


def test_text_that_looks_like_the_checksum_does_no_harm() -> None:
    event = {"event": "finish", "error": ', "crc": "00000000"}'}
    line, crc = encode(event)
    assert decode(line) == (event, crc)


def test_the_format_is_what_it_was() -> None:
    """Records outlive the version that wrote them."""
    line = '{"event": "start", "trial": "00003", "crc": "f8a7e310"}\n'
    assert encode({"event": "start", "trial": "00003"}) == (line, 0xF8A7E310)
    assert decode(line) == ({"event": "start", "trial": "00003"}, 0xF8A7E310)


@pytest.mark.parametrize(
    "line", ["", "\n", "{}\n", "\0" * 100, '{"event": "x"}\n', '{"event": "x", "crc": "00000000"}\n', ', "crc": "00000000"}\n']
)
def test_lines_that_are_none(line: str) -> None:
    assert decode(line) is None


def test_times_are_utc_to_the_millisecond() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", now())


def test_a_record_that_is_not_there_is_an_empty_sweep(tmp_path: Path) -> None:
    assert read_sweep(tmp_path / "none.jsonl") == Sweep()
    assert not (tmp_path / "none.jsonl").exists()
    assert Sweep().header == SessionHeader()
    assert Sweep().used_s == 0
    assert Sweep().best_trial("accuracy", "max") is None


def test_an_empty_file_is_an_empty_sweep(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").touch()
    assert read_sweep(tmp_path / "r.jsonl") == Sweep()


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "state/r.jsonl"
    with Record(path) as record:
        record.write("session", sweep={"name": "s", "search_space": {"lr": (1, 2)}})
        record.write("trial", **TRIAL)
        written = record.sweep
    assert read_sweep(path) == written
    assert path.parent.stat().st_mode & 0o777 == 0o700, "the state is nobody else's business"


def test_the_whole_story_of_a_trial(tmp_path: Path) -> None:
    events = write(tmp_path / "r.jsonl")
    sweep = read_sweep(tmp_path / "r.jsonl")
    trial = sweep.trials["00000"]
    assert (trial.status, trial.finished, trial.error) == ("TERMINATED", True, None)
    assert (trial.index, trial.repeat, trial.seed, trial.config) == (0, 0, 7, {"lr": 0.1, "name": "größer"})
    assert (trial.epochs, trial.time_s, trial.node) == (2, 2.0, "n2")
    assert trial.started == events[2]["at"]
    assert trial.ended == events[6]["at"]
    assert trial.checkpoints == {1: "checkpoints/00000/1"}
    assert [r.metrics["accuracy"] for r in trial.results] == [0.5, 0.4]
    assert sweep.header == SessionHeader(name="s")
    assert sweep.sessions[0].outcome == "complete"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The content of a record with an event of each kind."""
    path = tmp_path_factory.mktemp("record") / "r.jsonl"
    write(path)
    return path.read_bytes()


@given(st.data())
def test_a_record_that_was_cut_anywhere_loses_its_last_event_at_most(whole: bytes, data: st.DataObject) -> None:
    events = [json.loads(line) for line in whole.decode().splitlines()]
    for event in events:
        del event["crc"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.jsonl"
        cut = data.draw(st.integers(0, len(whole)))
        kept = whole[:cut].count(b"\n")
        path.write_bytes(whole[:cut])
        assert [event for event, *_ in read_events(path)] == events[:kept]
        with Record(path) as record:
            assert path.read_bytes() == whole[: whole[:cut].rfind(b"\n") + 1], "the torn line is cut off"
            record.write("session", sweep={})
        assert [event["event"] for event, *_ in read_events(path)] == [*(event["event"] for event in events[:kept] if event), "session"]


@pytest.mark.parametrize("tail", [b"\0" * 512, b'{"event": "res', b"\xff\xfe"])
def test_what_a_power_loss_may_leave_at_the_end_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "r.jsonl"
    events = write(path)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    assert [event for event, *_ in read_events(path)] == events
    Record(path).close()
    assert path.read_bytes() == whole


def test_zeros_within_what_had_reached_the_disk_are_no_power_loss(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Record(path) as record:
        record.write("session", sweep={})
        record.write("trial", **TRIAL)
        record.write("start", **START)
        record.write("result", **result(1, 0.5))
        record.write("result", **result(2, 0.5))
    *lines, first, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, b"\0" * len(first), last]))
    assert len(read_sweep(path).trials["00000"].results) == 0, "neither result had been flushed"
    path.write_bytes(b"".join([b"\0" + lines[0][1:], *lines[1:], first, last]))
    with pytest.raises(RaysweepError, match="line 1 was altered"):
        read_sweep(path)


def test_a_line_that_was_removed_or_moved_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path)
    lines = path.read_bytes().splitlines(keepends=True)
    for altered in ([*lines[:3], *lines[4:]], [*lines[:3], lines[4], lines[3], *lines[5:]], lines[1:]):
        path.write_bytes(b"".join(altered))
        with pytest.raises(RaysweepError, match="or one before it was removed"):
            read_sweep(path)


def test_a_whole_last_line_that_was_altered_is_refused_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path)
    path.write_bytes(path.read_bytes() + b"x\n")
    with pytest.raises(RaysweepError, match="was altered"):
        Record(path)


@given(st.data())
def test_a_line_that_was_altered_before_the_last_one_is_refused(whole: bytes, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "r.jsonl"
        altered = bytearray(whole)
        lines = altered.splitlines(keepends=True)
        end = len(altered) - len(lines[-1]) - 1  # behind it is the line break before the last line
        place = data.draw(st.integers(0, end - 1).filter(lambda p: altered[p : p + 1] != b"\n"))
        altered[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != altered[place]))
        path.write_bytes(altered)
        number = altered[:place].count(b"\n") + 1
        for read in (read_sweep, Record):
            with pytest.raises(
                RaysweepError, match=rf"r\.jsonl: line {number} was altered, or one before .* \(its checksum does not fit\)\. Restore"
            ):
                read(path)
        assert path.read_bytes() == altered, "nothing was changed"


def test_reading_changes_nothing_while_the_driver_writes(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Record(path) as record:
        record.write("session", sweep={})
        with path.open("ab") as other:  # half of the driver's next line has reached the disk
            other.write(b'{"event": "tri')
        before = path.read_bytes()
        assert len(read_sweep(path).sessions) == 1
        assert path.read_bytes() == before


def test_what_a_driver_that_was_cut_off_still_writes_is_nobodys(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Record(path) as cut_off:
        cut_off.write("session", sweep={"name": "s"})
        with Record(path) as record:
            record.write("session", sweep={"name": "s"})
            cut_off.write("session_end", outcome="complete", spent_s=1.0)
            record.write("session_end", outcome="interrupted", spent_s=2.0)
    assert [session.outcome for session in read_sweep(path).sessions] == [None, "interrupted"]


def test_a_line_that_does_not_fit_on_the_disk_raises_and_costs_nothing_that_was_written(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    record = Record(path)
    record.write("session", sweep={})
    record.write("trial", **TRIAL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            record.write("start", **START)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert record.sweep.trials["00000"].status == "PENDING", "what is not on the disk did not happen"
    assert read_sweep(path).trials["00000"].status == "PENDING"
    with Record(path) as again:
        again.write("start", **START)
    assert read_sweep(path).trials["00000"].status == "RUNNING"


def test_a_reader_reads_only_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    with Record(path) as record:
        record.write("session", sweep={"name": "s"})
        reader = RecordReader(path)
        assert not reader.read().trials
        record.write("trial", **TRIAL)
        record.write("start", **START)
        record.write("result", **result(1, 0.5))
        assert reader.read() == record.sweep == read_sweep(path)
        with path.open("r+b") as stream:  # what was read before is not read again
            stream.seek(3)
            stream.write(b"E")
        with path.open("ab") as stream:
            stream.write(b'{"event": "result"')
        assert reader.read() == record.sweep, "an incomplete line is left for the next reading"


def test_a_reader_goes_on_in_the_file_of_the_next_session(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    write(path)
    reader = RecordReader(path)
    reader.read()
    with Record(path) as record:
        record.write("session", sweep={"name": "s"})
        assert reader.read() == record.sweep
    path.rename(tmp_path / "aside")
    assert reader.read() == Sweep()
    with Record(path) as record:
        record.write("session", sweep={"name": "another"})
        assert [session.header.name for session in reader.read().sessions] == ["another"]
