"""What a stranger tries, in a process of his own that has nothing but Python's library. `python intruder.py ports|files|processes`.

It reads what to try from its standard input, as JSON, and writes what came of it:

    ports      {targets: [[address, port], …], token: what it shows for one or null, methods: of gRPC, requests: [[verb, path], …] of HTTP,
                tls: null for none, {} without a certificate, or {certfile: …, keyfile: …}, malformed: whether the calls are}
               → {"address:port": {"grpc": {method: [status, message]}, "http": {"GET /": [status, body]}, "bytes": text}}; null is no answer
    files      {paths: […], alter: whether to try that too} → {path: what could be done with it}
    processes  {} → {pid: {"line": command line, "uid": of whom, "done": what could be done with it}}
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import re
import signal
import socket
import ssl
import stat
import sys
from collections.abc import Callable
from typing import Any

DEADLINE_S = 10
HEADERS, SETTINGS, PING = 1, 4, 6  # kinds of HTTP/2's frames, see RFC 9113
END_STREAM, END_HEADERS, ACK = 1, 4, 1
AT_A_TIME = 50  # a server takes at most 100 calls at a time on one connection
PTRACE_ATTACH, PTRACE_DETACH = 16, 17
Answer = list[Any] | None
Tls = dict[str, str] | None


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name: str, value: str) -> bytes:
    """A header as it is: in no table, and not compressed (RFC 7541, 6.2.2)."""
    words = [word.encode() for word in (name, value)]
    return b"\0" + b"".join((bytes([127, len(word) - 127]) if len(word) >= 127 else bytes([len(word)])) + word for word in words)


def connected(host: str, port: int, tls: Tls) -> socket.socket:
    connection = socket.create_connection((host, port), DEADLINE_S)
    if tls is None:
        return connection
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # he talks to whoever answers
    context.set_alpn_protocols(["h2"])
    if tls:
        context.load_cert_chain(**tls)
    return context.wrap_socket(connection)


def call(address: str, token: str | None, method: str, stream: int, malformed: bool) -> bytes:
    """A call with an empty request."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": address,
        "te": "trailers",
        "content-type": "application/grpc",
    }
    # Without the last of these Ray's syncer (2.60) ends its process before it looks at the token; SECURITY.md says so.
    fields |= ({"authorization": f"Bearer {token}"} if token else {}) | ({} if malformed else {"node_id": 56 * "0"})
    block = b"".join(literal(name, value) for name, value in fields.items())
    return frame(HEADERS, END_HEADERS, stream, block) + frame(0, END_STREAM, stream, bytes(5))


def value_of(name: bytes, block: bytes) -> str | None:
    """The value of a header of the answer, which uses no table either, since we allow none."""
    found = re.search(re.escape(bytes([len(name)]) + name) + rb"(.)", block, re.DOTALL)
    return block[found.end() : found.end() + found[1][0]].decode() if found else None


def grpc(host: str, port: int, token: str | None, methods: list[str], tls: Tls, malformed: bool) -> dict[str, Answer]:
    """Call each method; its gRPC status and message."""
    answers: dict[str, Answer] = {}
    no_table = b"\0\1" + bytes(4)  # the size of HPACK's table
    for start in range(0, len(methods), AT_A_TIME):
        calls = dict(enumerate(methods[start : start + AT_A_TIME]))
        answers |= dict.fromkeys(calls.values())
        try:
            with connected(host, port, tls) as connection, connection.makefile("rb") as stream:
                connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, no_table))
                connection.sendall(b"".join(call(host, token, method, 2 * number + 1, malformed) for number, method in calls.items()))
                while calls and len(head := stream.read(9)) == 9:
                    kind, flags, number = head[3], head[4], int.from_bytes(head[5:], "big") // 2
                    payload = stream.read(int.from_bytes(head[:3], "big"))
                    if kind in (SETTINGS, PING) and not flags & ACK:
                        connection.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
                    if kind == HEADERS and (status := value_of(b"grpc-status", payload)) is not None:
                        answers[calls.pop(number)] = [int(status), value_of(b"grpc-message", payload)]
        except OSError:
            pass  # what was not answered stays null
    return answers


def ask(host: str, port: int, token: str | None, verb: str, path: str, tls: Tls) -> Answer:
    """Send a request of HTTP; its status and body."""
    connection = http.client.HTTPConnection(host, port, timeout=DEADLINE_S)
    try:
        connection.sock = connected(host, port, tls)
        connection.request(verb, path, headers={"Authorization": f"Bearer {token}"} if token else {})
        answer = connection.getresponse()
        return [answer.status, answer.read(10**6).decode(errors="replace")]
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def shout(host: str, port: int) -> str | None:
    """Send bytes that mean nothing; what comes back."""
    try:
        with socket.create_connection((host, port), DEADLINE_S) as connection:
            connection.sendall(bytes(range(256)) * 16)
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(10**6).decode(errors="replace")
    except OSError:
        return None


def ports(
    targets: list[tuple[str, int]],
    token: str | None,
    methods: list[str],
    requests: list[tuple[str, str]],
    tls: Tls = None,
    malformed: bool = False,
) -> dict[str, Any]:
    return {
        f"{host}:{port}": {
            "grpc": grpc(host, port, token, methods, tls, malformed),
            "http": {f"{verb} {path}": ask(host, port, token, verb, path, tls) for verb, path in requests},
            "bytes": shout(host, port),
        }
        for host, port in targets
    }


def read(path: str) -> None:
    with open(path, "rb") as stream:
        stream.read(1)


def write(path: str) -> None:
    with open(path, "ab") as stream:
        stream.write(b"altered")


def connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)


def create_in(path: str) -> None:
    with open(f"{path}/foreign", "x"):
        pass


def what_works(attempts: dict[str, Callable[[], Any]]) -> list[str]:
    """Which of the attempts come to an end."""
    done = []
    for name, attempt in attempts.items():
        try:
            attempt()
        except OSError:
            continue
        done.append(name)
    return done


def files(paths: list[str], alter: bool) -> dict[str, list[str]]:
    found = {}
    for path in paths:
        attempts: dict[str, Callable[[], Any]] = {
            "read": lambda path=path: read(path),
            "list": lambda path=path: os.listdir(path),
            "connect": lambda path=path: connect(path),
        }
        if alter:
            attempts |= {
                "write": lambda path=path: write(path),
                "create in": lambda path=path: create_in(path),
                "change mode of": lambda path=path: os.chmod(path, 0o777),
                "rename": lambda path=path: os.rename(path, f"{path}.renamed"),
                "remove": lambda path=path: os.rmdir(path) if os.path.isdir(path) else os.unlink(path),
            }
        found[path] = what_works(attempts)
    return found


def attach(pid: int) -> None:
    """Become a process's debugger, and let go of it at once."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(PTRACE_ATTACH, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(pid, 0)
    libc.ptrace(PTRACE_DETACH, pid, None, None)


def processes() -> dict[int, dict[str, Any]]:
    """Every process that it sees, and a child of its own, with which all of this works."""
    own = os.fork()
    if own == 0:
        signal.pause()
    found = {}
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]:
        folder = f"/proc/{pid}"
        try:
            with open(f"{folder}/cmdline", "rb") as stream:
                line = stream.read().replace(b"\0", b" ").decode(errors="replace")
            uid = os.stat(folder, follow_symlinks=False)[stat.ST_UID]
        except OSError:
            continue  # it ended just now
        attempts: dict[str, Callable[[], Any]] = {
            "read its environment": lambda: read(f"{folder}/environ"),  # noqa: B023
            "read its memory's map": lambda: read(f"{folder}/maps"),  # noqa: B023
            "open its memory": lambda: os.close(os.open(f"{folder}/mem", os.O_RDWR)),  # noqa: B023
            "list its files": lambda: os.listdir(f"{folder}/fd"),  # noqa: B023
            "enter its folder": lambda: os.listdir(f"{folder}/cwd"),  # noqa: B023
            "signal it": lambda: os.kill(pid, 0),  # noqa: B023
            "debug it": lambda: attach(pid),  # noqa: B023
        }
        found[pid] = {"line": line, "uid": uid, "done": what_works(attempts)}
    os.kill(own, signal.SIGKILL)
    os.waitpid(own, 0)
    return found


if __name__ == "__main__":
    modes: dict[str, Callable[..., Any]] = {"ports": ports, "files": files, "processes": processes}
    json.dump(modes[sys.argv[1]](**json.load(sys.stdin)), sys.stdout)
