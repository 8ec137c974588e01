"""The one process of a cluster that keeps the right to mount and to make network devices. Its argument is the cluster's folder.

It does what stdin tells it, a JSON list a line, and answers each with a JSON object on stdout. When stdin closes, however the tests have
ended, it ends everything that the cluster started, and removes the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil


def obey(base: Path) -> None:
    children: dict[str, subprocess.Popen[bytes]] = {}
    for line in sys.stdin:
        verb, *arguments = json.loads(line)
        answer: dict[str, Any] = {}
        if verb == "run":
            done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            answer = {"error": done.stderr} if done.returncode else {}
        elif verb == "start":
            name, *argv = arguments
            argv = ["setpriv", "--pdeathsig=KILL", *argv]  # should this process ever be killed
            with (base / "log" / f"{name}.out").open("ab") as log:
                children[name] = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
            answer = {"pid": children[name].pid}
        elif verb == "wait":
            children.pop(arguments[0]).wait()
        print(json.dumps(answer), flush=True)


def end_all() -> None:
    me = psutil.Process()
    network = network_of(me)
    ours: set[psutil.Process] = set()
    while True:
        # Also those that have lost their parent. The first process of a node takes all of the node with it before it is a zombie itself.
        ours |= {*me.children(recursive=True), *(process for process in psutil.process_iter() if network_of(process) == network)} - {me}
        if not (alive := [process for process in ours if is_alive(process)]):
            return
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.01)


def network_of(process: psutil.Process) -> str | None:
    try:
        return os.readlink(f"/proc/{process.pid}/ns/net")
    except OSError:  # it ended just now, or is another user's
        return None


def is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    try:
        obey(Path(sys.argv[1]))
    finally:
        end_all()
        shutil.rmtree(sys.argv[1])
