"""This module runs a program once on each node, and exchanges messages with these tasks through their standard input and output.

Without a Slurm job, the program runs once on this machine, without `srun`.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
from typing import Generic, TypeVar

from raysweep.cluster.channel import send
from raysweep.cluster.children import GRACE_S
from raysweep.common.errors import WorldError, logger
from raysweep.slurm.commands import ended_tasks
from raysweep.usercode.target import SCRIPTS_DIR

M = TypeVar("M")


def script_command(script: str, *arguments: str) -> list[str]:
    """Return the command that runs a script of this project."""
    return [sys.executable, str(SCRIPTS_DIR / script), *arguments]


def print_to_terminal(line: str) -> None:
    """Print a line to stderr, and ignore errors. The caller must go on when stderr fails, because `| tee` was ended or the disk is full."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(line)
        sys.stderr.flush()


class NodeTasks(Generic[M]):
    """Runs a script of this project once on each node inside a `with` block, and queues the messages of the tasks.

    The process runs in a new session, so that a Ctrl-C in the terminal does not reach the tasks. No wait for the process is without a time limit, because
    `srun` can wait for ever, for example when the `slurmstepd` of a node has died.
    """

    error_prefixes: tuple[str, ...] = ("",)  # beginnings of the lines on stderr that are error messages

    def __init__(self, command: list[str], end_deadline_s: float, env: dict[str, str] | None = None) -> None:
        """Start the tasks with `command`. The tasks have `end_deadline_s` seconds to end after the end of their input.

        Raises WorldError where the start fails.
        """
        self.name = "srun" if command[0] == "srun" else "the agent"
        self.end_deadline_s = end_deadline_s
        self.messages: queue.Queue[M | None] = queue.Queue()  # None is the last item, after the end of the output
        self.error_lines: list[str] = []
        self.has_ended_output = threading.Event()  # set before None is queued
        self.outbox: queue.Queue[object] = queue.Queue()  # None is the last item, after which the input of the tasks ends
        self.is_over = threading.Event()
        pipe = subprocess.PIPE
        try:
            # `errors` is set because the prolog of a site may print text in another encoding.
            self.process = subprocess.Popen(
                command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True
            )
        except OSError as error:
            raise WorldError(f"{command[0]} cannot be run: {error.strerror}") from None
        self.threads = [
            threading.Thread(target=target, daemon=True) for target in (self.read_messages, self.read_errors, self.write_messages)
        ]

    def read_message(self, line: str) -> M | None:
        """Return the message that a line from a task contains, or None for any other line."""
        raise NotImplementedError

    def message_for_ended_task(self, rank: int) -> M | None:
        """Return the message that is queued when the task `rank` has failed. A task that was killed cannot send a message."""
        raise NotImplementedError

    def __enter__(self) -> NodeTasks[M]:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the tasks: end their standard input, then send SIGTERM, then SIGKILL."""
        self.is_over.set()
        for end in (self.close_input, self.process.terminate, self.process.kill):  # srun kills its tasks when srun gets SIGTERM
            end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(self.end_deadline_s)
                break
            logger.warning("%s did not end within %d s: ending it by force.", self.name, self.end_deadline_s)
        for thread in self.threads:
            thread.join(GRACE_S)  # a process that the tasks left behind may keep the output open

    def give_up(self) -> None:
        """End the input of the tasks, so that the tasks that can be reached end Ray. Then end the process with SIGKILL, after 2 * GRACE_S seconds."""
        self.is_over.set()
        self.close_input()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(2 * GRACE_S)
        self.process.kill()

    def close_input(self) -> None:
        self.outbox.put(None)

    def send(self, message: object) -> None:
        """Send a message to all tasks. Returns at once, also where the process does not read its input."""
        self.outbox.put(message)

    # This method runs in a thread, because the process may read no more.
    def write_messages(self) -> None:
        assert self.process.stdin
        # An error here means that the process has ended. `read_messages` notices that end too, so the error needs no treatment here.
        with contextlib.suppress(BrokenPipeError), self.process.stdin:
            while (message := self.outbox.get()) is not None:
                send(message, self.process.stdin)

    # This method runs in a thread.
    def read_messages(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            message = self.read_message(line)
            if message is None:  # the line is no message: for example, the prolog of the site printed the line
                print_to_terminal(line)
            else:
                self.messages.put(message)
        self.has_ended_output.set()
        self.messages.put(None)

    def read_errors(self) -> None:
        """Print the lines on stderr to the terminal, and queue a message for each task that has failed.

        This method runs in a thread. An error line of `srun` tells which tasks have failed.
        """
        assert self.process.stderr
        for line in self.process.stderr:
            print_to_terminal(line)
            self.note_error(line)
            if line.startswith(self.error_prefixes):
                logger.debug("%s", line.strip())
                self.error_lines.append(line.strip())
            for rank in ended_tasks(line):
                self.messages.put(self.message_for_ended_task(rank))

    def note_error(self, line: str) -> None:
        """Note a line on stderr. This method does nothing, and a subclass may read more from the line than which tasks have failed."""

    def last_errors(self) -> str:
        return " | ".join(self.error_lines[-3:])

    def describe_end(self) -> str:
        """Return a text that says how the process has ended, after the process has closed its output."""
        try:
            exit_code = self.process.wait(self.end_deadline_s)
        except subprocess.TimeoutExpired:
            return f"{self.name} has closed its output and does not end: {self.last_errors() or 'it printed no error'}"
        self.threads[1].join(GRACE_S)  # `read_errors` may still be reading the last lines
        if exit_code < 0:
            return f"{self.name} was killed (signal {-exit_code})"
        return f"{self.name} ended with exit code {exit_code}: {self.last_errors() or 'it printed nothing'}"
