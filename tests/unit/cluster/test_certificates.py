"""Certificates of a run, judged by TLS of Python's library: who has one of the same run connects, and no one else."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from raysweep.cluster.certificates import new_authority, write_certificate
from raysweep.cluster.channel import Authority

AUTHORITY = new_authority()


def certificate(folder: Path, authority: Authority = AUTHORITY, address: str = "10.0.0.1") -> dict[str, str]:
    folder.mkdir()
    return write_certificate(authority, address, folder)


def context(purpose: ssl.Purpose, env: dict[str, str]) -> ssl.SSLContext:
    """What a process of Ray with these variables does: it shows its certificate, and asks for one of its authority."""
    made = ssl.create_default_context(purpose, cafile=env["RAY_TLS_CA_CERT"])
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    made.load_cert_chain(env["RAY_TLS_SERVER_CERT"], env["RAY_TLS_SERVER_KEY"])
    return made


def connect(server_env: dict[str, str], client: ssl.SSLContext, address: str = "10.0.0.1") -> bytes:
    """What a client gets of a server that it knows under an address. Raises OSError where one of both refuses the other."""
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    theirs.settimeout(20)

    def serve() -> None:
        try:
            with context(ssl.Purpose.CLIENT_AUTH, server_env).wrap_socket(theirs, server_side=True) as connection:
                connection.sendall(b"hello")
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours, server_hostname=address) as connection:
            return connection.recv(5)
    finally:
        ours.close()
        thread.join()


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1", "localhost"])
def test_two_nodes_of_a_run_trust_each_other_at_their_addresses_and_on_the_loopback(tmp_path: Path, address: str) -> None:
    server, client = certificate(tmp_path / "1"), certificate(tmp_path / "2", address="10.0.0.2")
    assert connect(server, context(ssl.Purpose.SERVER_AUTH, client), address) == b"hello"


def test_a_node_is_not_taken_for_another_node(tmp_path: Path) -> None:
    server, client = certificate(tmp_path / "1"), certificate(tmp_path / "2", address="10.0.0.2")
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for '10\.0\.0\.2'"):
        connect(server, context(ssl.Purpose.SERVER_AUTH, client), "10.0.0.2")


def test_neither_side_trusts_a_node_of_another_run(tmp_path: Path) -> None:
    own, foreign = certificate(tmp_path / "1"), certificate(tmp_path / "2", new_authority())
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(foreign, context(ssl.Purpose.SERVER_AUTH, own))
    client = context(ssl.Purpose.SERVER_AUTH, foreign)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(OSError, match=r"(?i)unknown.ca"):
        connect(own, client)


def test_a_client_without_a_certificate_is_refused(tmp_path: Path) -> None:
    server = certificate(tmp_path / "1")
    client = ssl.create_default_context(cafile=server["RAY_TLS_CA_CERT"])
    with pytest.raises(OSError, match=r"(?i)certificate.required"):
        connect(server, client)


def test_a_node_cannot_sign_for_others(tmp_path: Path) -> None:
    """A certificate of a node is not one of an authority."""
    node = certificate(tmp_path / "1")
    as_authority = Authority(*(Path(node[f"RAY_TLS_SERVER_{what}"]).read_text() for what in ("CERT", "KEY")))
    forged = certificate(tmp_path / "2", as_authority, "10.0.0.2")
    chain = tmp_path / "chain"
    chain.write_text("".join(Path(each["RAY_TLS_SERVER_CERT"]).read_text() for each in (forged, node)))
    client = context(ssl.Purpose.SERVER_AUTH, node)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(forged | {"RAY_TLS_SERVER_CERT": str(chain), "RAY_TLS_CA_CERT": node["RAY_TLS_CA_CERT"]}, client, "10.0.0.2")


def test_only_this_user_can_read_the_files_and_the_key_of_the_authority_is_in_none(tmp_path: Path) -> None:
    env = certificate(tmp_path / "1")
    assert env.pop("RAY_USE_TLS") == "1"
    paths = sorted((tmp_path / "1").iterdir())
    assert sorted(map(Path, env.values())) == paths
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o600] * 3
    assert not [path for path in paths if AUTHORITY.key in path.read_text()]
    assert AUTHORITY.key not in repr(AUTHORITY)


@pytest.mark.parametrize("make", [new_authority, lambda: AUTHORITY], ids=["authority", "node"])
def test_keys_are_new_each_time(tmp_path: Path, make: Callable[[], Authority]) -> None:
    keys = {Path(certificate(tmp_path / name, make())["RAY_TLS_SERVER_KEY"]).read_text() for name in ("1", "2")}
    assert len(keys) == 2
