"""Who listens on the wire reads this. `python listener.py OUTPUT INTERFACE…` reads all TCP traffic of the interfaces, until its standard input ends.

It writes `listening` when it has begun, and at the end the file OUTPUT, JSON: {"10.0.0.1:5>10.0.0.2:6": bytes in Latin-1}. Only root can do this.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
from collections import defaultdict
from pathlib import Path

ETHERNET, IPV4, TCP = 14, b"\x08\x00", 6
LARGEST = 2**17  # longer than a packet can be, also one that the network device cuts up
OUTGOING = 4  # a frame that comes from another interface, where it was read already


def payload_of(frame: bytes) -> tuple[str, bytes]:
    """Who sends to whom, and what."""
    packet = frame[ETHERNET:]
    if frame[12:14] != IPV4 or packet[9] != TCP:
        return "", b""
    packet = packet[: int.from_bytes(packet[2:4], "big") or None]  # short frames are filled up
    segment = packet[4 * (packet[0] & 15) :]
    hosts = [socket.inet_ntoa(packet[start : start + 4]) for start in (12, 16)]
    ports = [int.from_bytes(segment[start : start + 2], "big") for start in (0, 2)]
    sender, receiver = (f"{host}:{port}" for host, port in zip(hosts, ports, strict=True))
    return f"{sender}>{receiver}", segment[4 * (segment[12] >> 4) :]


def main() -> None:
    output, *interfaces = sys.argv[1:]
    streams: dict[str, bytearray] = defaultdict(bytearray)
    with selectors.DefaultSelector() as selector:
        for interface in interfaces:
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**26)
            wire.bind((interface, 0))
            selector.register(wire, selectors.EVENT_READ, wire)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("listening", flush=True)
        is_over = False
        while not is_over:
            for key, _ in selector.select():
                if key.data is None:
                    is_over = True
                else:
                    data, (_, _, kind, *_) = key.data.recvfrom(LARGEST)
                    if kind != OUTGOING:
                        stream, payload = payload_of(data)
                        streams[stream] += payload
    Path(output).write_text(json.dumps({stream: payload.decode("latin-1") for stream, payload in streams.items() if payload}))


if __name__ == "__main__":
    main()
