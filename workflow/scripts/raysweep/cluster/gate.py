"""The gate is the way by which the jobs of one sweep become one Ray cluster.

One job leads the sweep, and has Ray's head and the driver. The launcher of this job opens a gate, which is a socket in a private folder on the first node
of the job. The launcher of another job starts a relay at the gate with `srun --jobid`, and Slurm lets only the user of the job do this. Through the relay,
the launcher of the other job gets the same messages as the agents of the leader (channel.py): how to start Ray, the secret token of the run, the address
of Ray's head, and a sign of life in each tick. So no secret is on a shared disk, and no port is needed. The controller's Python runs this module.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from pathlib import Path

from raysweep.cluster.channel import TICK_S, HeadAddress, LauncherAlive, LauncherMessage, Start, read_launcher_message
from raysweep.cluster.lock import GateAddress
from raysweep.cluster.node_tasks import NodeTasks, script_command
from raysweep.common.typed_json import to_json
from raysweep.slurm.allocation import without_slurm_job
from raysweep.slurm.commands import step_of_other_job

SEND_DEADLINE_S = 10  # time limit in seconds for one message to a relay; a relay that reads no more is cut off
END_DEADLINE_S = 5  # time limit in seconds for the end of a relay


class Gate:
    """Sends the launcher's messages to all relays at the socket `path`, inside of a `with` block. The folder of `path` is private to this user.

    A relay that comes later gets all earlier messages first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sent: list[bytes] = []
        self.relays: list[socket.socket] = []
        self.is_sending = threading.Lock()
        self.is_over = threading.Event()
        self.threads = [threading.Thread(target=target, daemon=True) for target in (self._accept, self._show_life)]

    def __enter__(self) -> Gate:
        self.path.unlink(missing_ok=True)
        self.server.bind(str(self.path))
        self.server.listen(128)
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self.server.close()
        with self.is_sending:
            for relay in self.relays:
                relay.close()
            self.relays.clear()
        self.path.unlink(missing_ok=True)

    def send(self, message: Start | HeadAddress) -> None:
        """Send a message to all relays, and keep the message for the relays that come later."""
        line = _line(message)
        with self.is_sending:
            self.sent.append(line)
            self._send_to_all(line)

    def _send_to_all(self, line: bytes) -> None:
        for relay in list(self.relays):
            self._send_to(relay, line)

    def _send_to(self, relay: socket.socket, line: bytes) -> None:
        try:
            relay.sendall(line)
        except OSError:  # the other job has ended, or its relay reads no more
            relay.close()
            with contextlib.suppress(ValueError):
                self.relays.remove(relay)

    # This method runs in a thread.
    def _accept(self) -> None:
        while True:
            try:
                relay, _ = self.server.accept()
            except OSError:  # the gate is closed
                return
            relay.settimeout(SEND_DEADLINE_S)
            with self.is_sending:
                if self.is_over.is_set():
                    relay.close()
                    return
                self.relays.append(relay)
                for line in self.sent:
                    self._send_to(relay, line)

    # This method runs in a thread.
    def _show_life(self) -> None:
        while not self.is_over.wait(TICK_S):
            with self.is_sending:
                self._send_to_all(_line(LauncherAlive()))


def _line(message: object) -> bytes:
    return json.dumps(to_json(message)).encode() + b"\n"


class Relay(NodeTasks[LauncherMessage]):
    """Receives the messages of the leader's launcher from a gate on the first node of the leader's job."""

    def __init__(self, gate: GateAddress) -> None:
        command = step_of_other_job(gate.job, script_command("relay.py", gate.path))
        super().__init__(command, END_DEADLINE_S, env=without_slurm_job(dict(os.environ)))

    def read_message(self, line: str) -> LauncherMessage | None:
        try:
            return read_launcher_message(line)
        except (ValueError, TypeError):  # the prolog of the site has printed the line
            return None

    def message_for_ended_task(self, rank: int) -> None:
        return None


def copy_from(gate: str) -> None:
    """Copy the messages of the gate to the standard output, until the gate is closed, the standard input ends, or nobody reads the output any more."""

    def end_with_input() -> None:
        sys.stdin.read()
        os._exit(0)  # the main thread waits for the gate

    threading.Thread(target=end_with_input, daemon=True).start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, contextlib.suppress(OSError):
        connection.connect(gate)
        for line in connection.makefile("rb"):
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
