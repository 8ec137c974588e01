"""The gate is the way by which the jobs of one sweep become one Ray cluster.

One job leads the sweep, and has Ray's head and the driver. The launcher of this job opens a gate, which is a socket in a private folder on the first node
of the job. The launcher of another job starts a relay at the gate with `srun --jobid`, and Slurm lets only the user of the job do this. Through the relay,
the launcher of the other job gets the same messages as the agents of the leader (channel.py): how to start Ray, the secret token of the run, the address
of Ray's head, and a sign of life in each tick. So no secret is on a shared disk, and no port is needed. Slurm does not encrypt the streams of `srun`, so the
secrets are encrypted for a key that the other job has made. The controller's Python runs this module.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from raysweep.cluster.channel import (
    TICK_S,
    AgentKey,
    HeadAddress,
    LauncherAlive,
    LauncherMessage,
    SealedSecrets,
    Secrets,
    Start,
    read_agent_message,
    read_message,
)
from raysweep.cluster.lock import GateAddress
from raysweep.cluster.node_tasks import NodeTasks, script_command
from raysweep.cluster.run_secrets import seal_secrets
from raysweep.common.typed_json import from_json, to_json
from raysweep.slurm.allocation import without_slurm_job
from raysweep.slurm.commands import step_of_other_job

SEND_DEADLINE_S = 10  # time limit in seconds for one message to a relay; a relay that reads no more is cut off
END_DEADLINE_S = 5  # time limit in seconds for the end of a relay


@dataclass(frozen=True)
class GatedRelay:
    """Describes a relay that has come to the gate."""

    connection: socket.socket
    key: AgentKey  # public key of the relay's job


class Gate:
    """Sends the launcher's messages to all relays at the socket `path`, inside of a `with` block. The folder of `path` is private to this user.

    A relay first sends the public key of its job (AgentKey). A relay that comes later gets all earlier messages first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.start: Start | None = None
        self.head: HeadAddress | None = None
        self.relays: list[GatedRelay] = []
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
                relay.connection.close()
            self.relays.clear()
        self.path.unlink(missing_ok=True)

    def send(self, message: Start | HeadAddress) -> None:
        """Send a message to all relays, and keep the message for the relays that come later."""
        with self.is_sending:
            if isinstance(message, Start):
                self.start = message
            else:
                self.head = message
            for relay in list(self.relays):
                self._send_to(relay, message)

    def _send_to(self, relay: GatedRelay, message: Start | HeadAddress | LauncherAlive) -> None:
        messages: list[object] = [message]
        if isinstance(message, Start):
            messages = [message.without_secrets(), seal_secrets(message, relay.key)]
        try:
            relay.connection.sendall(b"".join(json.dumps(to_json(each)).encode() + b"\n" for each in messages))
        except OSError:  # the other job has ended, or its relay reads no more
            relay.connection.close()
            self.relays.remove(relay)

    # This method runs in a thread.
    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:  # the gate is closed
                return
            connection.settimeout(SEND_DEADLINE_S)
            try:
                key = read_agent_message(connection.makefile().readline())
            except OSError:
                key = None
            if not isinstance(key, AgentKey):
                connection.close()
                continue
            with self.is_sending:
                if self.is_over.is_set():
                    connection.close()
                    return
                relay = GatedRelay(connection, key)
                self.relays.append(relay)
                for message in (self.start, self.head):
                    if message is not None and relay in self.relays:
                        self._send_to(relay, message)

    # This method runs in a thread.
    def _show_life(self) -> None:
        while not self.is_over.wait(TICK_S):
            with self.is_sending:
                for relay in list(self.relays):
                    self._send_to(relay, LauncherAlive())


class Relay(NodeTasks[LauncherMessage]):
    """Receives the messages of the leader's launcher from a gate on the first node of the leader's job.

    `name` names this job. The message Start has its secrets.
    """

    def __init__(self, gate: GateAddress, name: str) -> None:
        from raysweep.cluster.sealing import Recipient  # as in run_secrets.new_secrets

        self.recipient = Recipient()
        self.start: Start | None = None  # message without the secrets, until the secrets have come
        key = json.dumps(to_json(AgentKey(name, self.recipient.public_key)))
        command = step_of_other_job(gate.job, script_command("relay.py", gate.path, key))
        super().__init__(command, END_DEADLINE_S, env=without_slurm_job(dict(os.environ)))

    def read_message(self, line: str) -> LauncherMessage | None:
        message: LauncherMessage | None = read_message(LauncherMessage, line)
        if isinstance(message, Start):
            self.start = message
            return LauncherAlive()
        if isinstance(message, SealedSecrets) and self.start is not None:
            return self.start.with_secrets(from_json(Secrets, json.loads(self.recipient.open(message.text))))
        return message

    def message_for_ended_task(self, rank: int) -> None:
        return None


def copy_from(gate: str, key: str) -> None:
    """Send the line `key` to the gate, and copy the messages of the gate to the standard output.

    Returns when the gate is closed, when the standard input ends, or when nobody reads the output any more.
    """

    def end_with_input() -> None:
        sys.stdin.read()
        os._exit(0)  # the main thread waits for the gate

    threading.Thread(target=end_with_input, daemon=True).start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, contextlib.suppress(OSError):
        connection.connect(gate)
        connection.sendall(f"{key}\n".encode())
        for line in connection.makefile("rb"):
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
