"""What the launcher makes of what the agents say. The agents here are made up; real ones are in test_run_sweep.py and slurm/."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raysweep.cluster import launcher
from raysweep.common.errors import WorldError
from raysweep.slurm.allocation import Allocation, Node

NODES = tuple(Node(name, cpus=4, gpus=1, mem_mb=1000, address=name) for name in ("n1", "n2", "n3"))
HEAD = {"node": "n1", "event": "head", "address": "10.0.0.1:5", "dashboard": None}
DONE = {"node": "n1", "event": "driver", "code": 0}


@dataclass(frozen=True)
class Scripted(Allocation):
    """An allocation whose agents say what a script says, and write down what they are told."""

    script: str = ""
    told: Path = Path()

    def command(self, argv: list[str]) -> list[str]:
        code = f"""
import json, sys, threading, time
told = open({str(self.told)!r}, "w", buffering=1)
over = threading.Event()
def listen():
    for line in sys.stdin:
        told.write(line)
    over.set()
threading.Thread(target=listen, daemon=True).start()
def say(**message):
    print(json.dumps(message), flush=True)
{self.script}
over.wait()
"""
        return [sys.executable, "-c", code]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    logging.getLogger("raysweep").propagate = True
    caplog.set_level(logging.INFO, "raysweep")
    return caplog


def run(tmp_path: Path, *messages: dict[str, Any], nodes: int = 3, min_nodes: int | None = None, then: str = "") -> int:
    script = "\n".join(f"say(**{message!r})" for message in messages)
    allocation = Scripted(NODES[:nodes], "7", started=time.time() - 5, script=f"{script}\n{then}", told=tmp_path / "told")
    return launcher.run(allocation, tmp_path, {"purpose": "search"}, tmp_path / "log", min_nodes=min_nodes)


def up(*names: str) -> list[dict[str, Any]]:
    return (
        [{"node": name, "event": "environment"} for name in names] + [HEAD] + [{"node": n, "event": "worker"} for n in names if n != "n1"]
    )


def test_all_nodes_come_and_the_drivers_exit_code_is_returned(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    assert run(tmp_path, *up("n1", "n2", "n3"), DONE | {"code": 3}) == 3
    [line] = said.messages
    assert line.startswith("Ray is up on 3 of 3 nodes after ")
    assert re.search(r": 12 CPUs, 3 GPUs \(start of the job \d+ s, environment ", line)
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    assert len(told[0]["start"]["token"]) == 64
    assert {"address": "10.0.0.1:5"} in told


def test_each_run_has_a_token_of_its_own_and_none_on_the_command_line(tmp_path: Path) -> None:
    tokens = set()
    for _ in range(2):
        run(tmp_path, *up("n1"), DONE, nodes=1)
        tokens.add(json.loads((tmp_path / "told").read_text().splitlines()[0])["start"]["token"])
    assert len(tokens) == 2
    assert not any(token in word for token in tokens for word in Allocation(NODES, "7").command(["agent"]))


def test_a_node_that_fails_is_named_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"^n2: no room on the disk$"):
        run(tmp_path, *up("n1"), {"node": "n2", "event": "failed", "why": "no room on the disk"})


def test_with_min_nodes_a_node_may_fail_and_another_come_late(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    failed = {"node": "n2", "event": "failed", "why": "broken"}
    late = [{"node": "n3", "event": "environment"}, {"node": "n3", "event": "worker"}]
    assert run(tmp_path, *up("n1"), failed, *late, DONE, min_nodes=1) == 0
    assert said.messages[0].startswith("Ray is up on 1 of 3 nodes")
    assert said.messages[1] == "n2 is lost: broken. The sweep goes on without it."
    assert said.messages[2].startswith("n3 has joined after ")
    assert said.messages[2].endswith(": 2 of 3 nodes.")


def test_once_it_runs_the_sweep_outlives_any_node_but_the_heads(tmp_path: Path) -> None:
    lost = [{"node": name, "event": "failed", "why": "gone"} for name in ("n3", "n2")]
    assert run(tmp_path, *up("n1", "n2", "n3"), *lost, DONE) == 0
    with pytest.raises(WorldError, match=r"^n1: gone$"):
        run(tmp_path, *up("n1", "n2", "n3"), {"node": "n1", "event": "failed", "why": "gone"})


def test_nodes_that_do_not_come_in_time_are_named_with_how_far_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = launcher.Launcher.heard

    def heard_last(self: launcher.Launcher, node: str, event: str, **facts: Any) -> int | None:
        """The time is over once all is said: how long that takes is for this machine to say."""
        if event == "head":
            monkeypatch.setattr(launcher, "BRING_UP_DEADLINE_S", 0)
        return heard(self, node, event, **facts)

    monkeypatch.setattr(launcher.Launcher, "heard", heard_last)
    monkeypatch.setattr(launcher, "TICK_S", 0.1)
    answer = r"^not up: n2 \(it waits for Ray's head\), n3 \(it has not answered\) within 0 s$"
    with pytest.raises(WorldError, match=answer):
        run(tmp_path, *[m for m in up("n1", "n2") if m["event"] != "worker"])


def test_agents_that_do_not_start_are_explained_by_sruns_last_words(tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"not up: n1 .* srun ended with exit code 1: srun: error: Unable to create step$"):
        run(tmp_path, then="print('srun: error: Unable to create step', file=sys.stderr); sys.exit(1)")


class Noted(logging.Handler):
    """Makes a file when a message that begins so is logged: what agents say and what srun says come through two pipes, in no order of their own."""

    def __init__(self, start: str, path: Path) -> None:
        super().__init__()
        self.start, self.path = start, path

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self.start):
            self.path.touch()


@pytest.mark.parametrize("rank", [0, 1])
def test_an_agent_that_was_killed_is_known_by_sruns_words(tmp_path: Path, rank: int, said: pytest.LogCaptureFixture) -> None:
    for start, name in (("Ray is up", "up"), ("n2 is lost", "lost")):
        logging.getLogger("raysweep").addHandler(Noted(start, tmp_path / name))
    wait = "import os\nwhile not os.path.exists({!r}): time.sleep(0.01)\n"
    then = wait.format(str(tmp_path / "up")) + f"print('srun: error: n{rank + 1}: task {rank}: Killed', file=sys.stderr, flush=True)\n"
    if rank == 0:
        with pytest.raises(WorldError, match=r"^n1: its agent ended: srun: error: n1: task 0: Killed$"):
            run(tmp_path, *up("n1", "n2", "n3"), then=then)
    else:
        then += wait.format(str(tmp_path / "lost")) + f"say(**{DONE!r})"
        assert run(tmp_path, *up("n1", "n2", "n3"), then=then) == 0
        assert said.messages[-1] == "n2 is lost: its agent ended: srun: error: n2: task 1: Killed. The sweep goes on without it."


def test_what_a_sites_prolog_prints_is_passed_over_in_any_encoding(tmp_path: Path) -> None:
    script = (
        "sys.stdout.buffer.write(b'loading caf\\xe9\\n'); sys.stdout.flush(); sys.stderr.buffer.write(b'caf\\xe9\\n'); sys.stderr.flush()\n"
    )
    script += "".join(f"say(**{message!r})\n" for message in [*up("n1"), DONE])
    allocation = Scripted(NODES[:1], "7", started=time.time(), script=script, told=tmp_path / "told")
    assert launcher.run(allocation, tmp_path, {}, tmp_path / "log") == 0


def test_a_terminal_that_is_gone_does_not_hold_up_what_writes_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    much = "print('x' * 2**20, file=sys.stderr, flush=True)\n"  # more than a pipe holds
    script = much + "".join(f"say(**{message!r})\n" for message in [*up("n1"), DONE])
    allocation = Scripted(NODES[:1], "7", started=time.time(), script=script, told=tmp_path / "told")
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert launcher.run(allocation, tmp_path, {}, tmp_path / "log") == 0


def test_without_slurm_the_one_node_needs_no_name(tmp_path: Path, said: pytest.LogCaptureFixture) -> None:
    script = "".join(f"say(**{message!r})\n" for message in [*up("n1"), {"node": "n1", "event": "failed", "why": "Ray's head ended"}])
    with pytest.raises(WorldError, match=r"^Ray's head ended$"):
        launcher.run(Scripted(NODES[:1], script=script, told=tmp_path / "told"), tmp_path, {}, tmp_path / "log")
    [line] = said.messages
    assert line.startswith("Ray is up after ")
    assert ": 4 CPUs, 1 GPUs (environment " in line


@pytest.mark.parametrize(
    ("ends_in_s", "why"), [(20, "ended job 7 at its time limit"), (3600, "job 7 was cancelled or preempted"), (None, "cancelled")]
)
def test_what_slurm_ends_says_so_in_one_line(tmp_path: Path, ends_in_s: float | None, why: str) -> None:
    ends = None if ends_in_s is None else time.time() + ends_in_s
    code = f"""
import sys; sys.path[:0] = [{str(launcher.SCRIPTS_DIR)!r}, {str(Path(__file__).parent)!r}]
from pathlib import Path
from test_launcher import NODES, Scripted
from raysweep.cluster import launcher
from raysweep.common.errors import run_entry_point, set_up_logging
set_up_logging(None)
allocation = Scripted(NODES, "7", ends={ends!r}, script="print('here', file=sys.stderr, flush=True)", told=Path({str(tmp_path / "told")!r}))
run_entry_point(lambda: launcher.run(allocation, Path(), {{}}, Path({str(tmp_path / "log")!r})))
"""
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        while "here" not in process.stderr.readline():
            assert process.poll() is None
        os.kill(process.pid, signal.SIGTERM)
        last = process.stderr.read().strip().splitlines()[-1]
        assert process.wait(30) == 1
    assert why in last
    assert "run the same command again to go on" in last
