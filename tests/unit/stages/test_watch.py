"""`make watch`: which record it takes, what it shows at 80 columns, and when it ends."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fake_slurm import Fakes
from raysweep.common.errors import ConfigError
from raysweep.record.file import Record, read_sweep
from raysweep.record.gpu_use import FOLDER, GpuUseFile
from raysweep.stages.watch import end_of, find_record, in_order, places, progress_values, shortened, state_of
from recorded import MemberJob, header, write_record

SCRIPT = Path(__file__).resolve().parents[3] / "workflow/scripts/watch.py"
NOT_A_PID = 2**22 + 1  # above the largest that Linux hands out


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script off a terminal."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "80", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Terminal:
    """The script in a terminal of 80 × 24."""

    def __init__(self, folder: Path, *arguments: str, rows: int = 24, **variables: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, 80, 0, 0))
        environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"TERM": "xterm-256color"} | variables
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *arguments],
            cwd=folder,
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.raw = ""

    def read_until(self, text: str | None) -> str:
        """What it printed, without escape sequences, until `text` came, or until it ended."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if text is not None and text in self.plain:
                return self.plain
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.raw += os.read(self.master, 65536).decode(errors="replace")
                except OSError:  # the other end is closed
                    self.process.wait(timeout=10)
                    if text is not None and text not in self.plain:
                        break
                    return self.plain
        raise AssertionError(f"{text!r} did not come; there was:\n{self.plain}")

    @property
    def plain(self) -> str:
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.raw).replace("\r", "")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


# --- which record -----------------------------------------------------------------------------------------------------------------


def test_the_record_written_last_is_taken_wherever_it_lies(tmp_path: Path) -> None:
    assert find_record(tmp_path, []) is None
    assert find_record(tmp_path / "nowhere", []) is None
    old, new = tmp_path / "a" / "record.jsonl", tmp_path / "demo" / "b" / "record.jsonl"
    for age, path in ((100, old), (10, new)):
        write_record(path, num_trials=1)
        os.utime(path, (time.time() - age,) * 2)
    assert find_record(tmp_path, []) == new
    assert find_record(tmp_path, ["a"]) == old
    assert find_record(tmp_path, ["c"]) is None
    write_record(new.parent / "confirm-0123" / "record.jsonl", num_trials=1)  # newer, but not the sweep itself
    assert find_record(tmp_path, []) == new


def test_the_config_says_where_to_look(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("state_dir: state/demo\nsweeps: {one: {}, two: {}}\n")
    assert places(config, None, None) == (Path("state/demo"), ["one", "two"])
    assert places(config, "two", Path("elsewhere")) == (Path("elsewhere"), ["two"])
    assert places(None, None, None) == (Path("state"), [])
    with pytest.raises(ConfigError, match=r"--sweep three: .* it has one, two"):
        places(config, "three", None)
    with pytest.raises(ConfigError, match="there is no such file"):
        places(tmp_path / "none.yaml", None, None)
    config.write_text("- a list\n")
    with pytest.raises(ConfigError, match="it has no sweeps"):
        places(config, None, None)


# --- what it tells ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("session", "expected"),
    [
        ({"outcome": "complete"}, "complete"),
        ({"outcome": "incomplete"}, "incomplete"),
        ({"outcome": None, "host": socket.gethostname(), "pid": os.getpid()}, "running"),
        ({"outcome": None, "host": socket.gethostname(), "pid": NOT_A_PID}, "cut off"),
        ({"outcome": None, "host": "another-node", "pid": NOT_A_PID}, "running"),  # cannot be seen from here
    ],
)
def test_the_state_of_a_sweep(tmp_path: Path, session: dict[str, Any], expected: str) -> None:
    assert state_of(write_record(tmp_path / "record.jsonl", num_trials=2, **session)) == expected


@pytest.mark.parametrize(("mode", "better"), [("max", max), ("min", min)])
def test_the_best_so_far_never_gets_worse(tmp_path: Path, mode: str, better: Any) -> None:
    sweep = write_record(tmp_path / "record.jsonl", mode=mode, failed={0: "x"})
    values = progress_values(sweep)
    assert len(values) == 19
    assert all(better(a, b) == b for a, b in pairwise(values))
    best = sweep.best_trial("accuracy", mode)  # type: ignore[arg-type]
    assert best is not None
    assert values[-1] == best[1].metrics["accuracy"]


def test_running_trials_come_first_then_the_best(tmp_path: Path) -> None:
    sweep = write_record(tmp_path / "record.jsonl", mode="min", running=2, outcome=None, failed={0: "x"}, max_epochs=4)
    trials = in_order(sweep)
    assert [t.status for t in trials[:3]] == ["RUNNING", "RUNNING", "TERMINATED"]
    assert trials[-1].status == "ERROR"
    best = sweep.best_trial("accuracy", "min")
    assert best is not None
    finished = [t for t in trials if t.status == "TERMINATED"]
    values = [r.metrics["accuracy"] for t in finished if (r := t.best("accuracy", "min"))]
    assert values == sorted(values)


def test_texts_are_cut_by_the_cells_that_they_take() -> None:
    assert shortened("abc", 3) == "abc"
    assert shortened("abcd", 3) == "ab…"
    assert shortened("日本語", 5) == "日本…"
    assert shortened("a\nb", 9) == "a b"
    assert end_of("node-0001", 5) == "…0001"
    assert end_of("n1", 5) == "n1"


# --- off a terminal ---------------------------------------------------------------------------------------------------------------


def test_off_a_terminal_it_prints_once_within_eighty_columns(tmp_path: Path) -> None:
    sweep = write_record(
        tmp_path / "state/demo/lenet/record.jsonl",
        num_trials=60,
        max_epochs=8,
        scheduler={"name": "asha"},
        running=3,
        outcome=None,
        failed={4: "ValueError: [red]x[/red]\nsecond line " + "y" * 200},
        nodes=("a-very-long-name-of-a-node-01.example.org", "node-2"),
        search_space={
            "lr": {"loguniform": [1e-4, 1e-1]},
            "net": {"width": {"randint": [16, 256]}, "name(0)": {"choice": ["日本語" * 20, "[b]"]}},
        },
        name="lenet",
        metric="accuracy_of_the_validation_set",
    )
    done = run(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "lenet: running"
    assert "57/60 trials done, 3 running" in lines[1]
    best = sweep.best_trial("accuracy_of_the_validation_set", "max")
    assert best is not None
    assert f"of trial {best[0].trial_id}" in lines[2]
    assert sum(bool(re.match(r"\d{5} ", line)) for line in lines) == 60  # a line a trial: none is wrapped
    assert "[red]x[/red]" in done.stdout
    assert "└" in done.stdout  # the plot


def test_the_use_of_the_gpus_in_the_last_minutes_is_shown_while_the_sweep_runs(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "s"
    for job, node, percent in (("7_0", "a", [12, 90]), ("7_1", "b", [60])):
        write_record(folder / "record.jsonl", outcome=None, running=2, host="another-node")
        GpuUseFile(folder, job, node).append(60, percent)
    assert "3 GPUs on 2 nodes: 54 % busy (from 12 % to 90 %)" in run(tmp_path).stdout
    (folder / FOLDER / "7_0-a.jsonl").write_text('{"at": "2026-02-01T10:00:00.000Z", "node": "a", "seconds": 60, "percent": [12, 90]}\n')
    assert "1 GPU on 1 node: 60 % busy\n" in run(tmp_path).stdout, "what was measured before the session does not count"
    write_record(folder / "record.jsonl")
    assert "busy" not in run(tmp_path).stdout


def test_without_a_record_it_ends_with_one_line(tmp_path: Path) -> None:
    done = run(tmp_path, "--once", "--sweep", "lenet", "--state-dir", "st")
    assert done.returncode == 1
    assert done.stderr == (
        "Error: There is no record of lenet below st yet. It is written as soon as run_sweep starts; --state-dir names another folder.\n"
    )


def test_a_record_in_which_nothing_stands_yet_is_none(tmp_path: Path) -> None:
    with Record(tmp_path / "state/lenet/record.jsonl"):
        pass
    done = run(tmp_path, "--once")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: There is no record of any sweep below state yet.")


def test_a_sweep_without_any_trial_yet_is_shown(tmp_path: Path) -> None:
    with Record(tmp_path / "state/lenet/record.jsonl") as record:
        record.write("session", sweep=header(), host="login-1", pid=1, nodes=[])
    done = run(tmp_path)
    assert done.returncode == 0
    assert "0/20 trials done" in done.stdout


def test_an_altered_record_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "state/lenet/record.jsonl"
    write_record(path)
    path.write_text(path.read_text().replace("batch_size", "batch-size", 1))
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "was altered" in done.stderr


JOBS = (MemberJob("8123_0", "node-1"), MemberJob("8123_1", "node-2", from_s=10))
ANSWER = """\
8123_0|RUNNING|node-1|2026-11-30T09:00:00|None
8123_1|RUNNING|node-2|2026-11-30T09:00:10|None
8123_2|PENDING||2026-11-30T14:03:11|Priority
8123_3|PENDING||N/A|Resources
"""


def with_fake_squeue(folder: Path, answer: str) -> tuple[Fakes, str]:
    """A squeue that gives this answer, and the PATH on which it is."""
    fakes = Fakes(folder / "fakes")
    fakes.answer("squeue", answer)
    return fakes, f"{fakes.folder}:/usr/bin:/bin"


def test_the_jobs_of_the_sweep_are_shown_as_a_fake_squeue_and_the_record_say(tmp_path: Path) -> None:
    write_record(tmp_path / "state/lenet/record.jsonl", num_trials=20, running=2, outcome=None, jobs=JOBS)
    fakes, path = with_fake_squeue(tmp_path, ANSWER)
    done = run(tmp_path, PATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    assert lines[0] == "lenet: running"
    table = lines[lines.index("jobs of 8123: 2 at work, 2 waiting") :]
    assert table[1:6] == [
        "8123_0 RUNNING node-1 leads",
        "8123_1 RUNNING node-2 joined",
        "8123_2 PENDING        Priority, expected start 2026-11-30 14:03",
        "8123_3 PENDING        Resources",
        "",
    ]
    assert max(map(len, lines)) <= 80
    assert len(fakes.calls("squeue")) == 1


def test_without_squeue_the_record_says_which_jobs_work(tmp_path: Path) -> None:
    write_record(tmp_path / "state/lenet/record.jsonl", num_trials=20, running=2, outcome=None, jobs=JOBS)
    text = run(tmp_path, PATH=str(tmp_path)).stdout
    assert "jobs of 8123: as the record says, because squeue does not list them" in text
    assert re.search(r"8123_0 +node-1 leads *\n8123_1 +node-2 joined *\n", text)


def test_a_finished_sweep_of_several_jobs_and_a_sweep_of_one_job_ask_nothing(tmp_path: Path) -> None:
    fakes, path = with_fake_squeue(tmp_path, ANSWER)
    for number, sweep in enumerate(({"jobs": JOBS}, {"running": 2, "outcome": None})):
        folder = tmp_path / str(number)
        write_record(folder / "state/lenet/record.jsonl", num_trials=20, **sweep)
        assert "jobs of" not in run(folder, PATH=path).stdout
    assert fakes.calls("squeue") == []


# --- in a terminal ----------------------------------------------------------------------------------------------------------------


def test_a_finished_sweep_is_shown_in_the_height_of_the_terminal_and_it_ends(tmp_path: Path) -> None:
    write_record(tmp_path / "state/lenet/record.jsonl", num_trials=100)
    with Terminal(tmp_path, rows=24) as terminal:
        text = terminal.read_until(None)
        assert terminal.process.returncode == 0
    assert "lenet: complete" in text
    assert re.search(r"… and \d+ more", text)
    frames = text.split("lenet: complete")[1:]  # it is drawn once more when it ends
    assert all(frame.rstrip().count("\n") + 1 <= 24 for frame in frames)


@pytest.mark.slow
def test_it_waits_for_the_record_follows_it_and_ends_with_the_sweep(tmp_path: Path) -> None:
    path = tmp_path / "state/lenet/record.jsonl"
    with Terminal(tmp_path) as terminal:
        terminal.read_until("Waiting for the record of any sweep below state")
        write_record(path, num_trials=2, running=1, outcome=None, host=socket.gethostname(), pid=os.getpid())
        terminal.read_until("1/2 trials done, 1 running")
        trial = next(t for t in read_sweep(path).trials.values() if not t.finished)
        with Record(path) as record:
            record.write("finish", trial=trial.trial_id, status="TERMINATED", error=None)
            record.write("session_end", outcome="complete")
        text = terminal.read_until(None)
        assert terminal.process.returncode == 0
    assert "lenet: complete" in text
    assert "2/2 trials done, 0 running" in text


@pytest.mark.slow
def test_it_follows_the_sweep_from_one_leader_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "state/lenet/record.jsonl"
    write_record(path, num_trials=20, running=2, outcome="out of time", jobs=JOBS)
    _, fakes_first = with_fake_squeue(tmp_path, "8123_1|RUNNING|node-2|2026-11-30T09:00:10|None\n")
    with Terminal(tmp_path, PATH=fakes_first) as terminal:
        terminal.read_until("lenet: waiting for the next leader")
        with Record(path) as record:
            record.write(
                "session", sweep=header(), host="node-2", pid=1, nodes=[{"name": "node-2", "cpus": 2, "gpus": 0}], slurm_job="8123_1"
            )
        terminal.read_until("lenet: running")
        terminal.read_until("8123_1 RUNNING node-2 leads")  # a frame can come in two reads
        with Record(path) as record:
            record.write("session_end", outcome="complete")
        terminal.read_until(None)
        assert terminal.process.returncode == 0


def test_ctrl_c_ends_it_without_a_traceback(tmp_path: Path) -> None:
    write_record(tmp_path / "state/lenet/record.jsonl", running=1, outcome=None, host="another-node")
    with Terminal(tmp_path) as terminal:
        terminal.read_until("lenet: running")
        os.killpg(terminal.process.pid, signal.SIGINT)
        text = terminal.read_until(None)
        assert terminal.process.returncode == 0
    assert "Traceback" not in text
