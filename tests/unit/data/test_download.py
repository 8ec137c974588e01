from __future__ import annotations

import resource
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from raysweep.common.errors import WorldError
from raysweep.common.files import sha256_of_file
from raysweep.data import cifar10
from raysweep.data.download import fetch
from staging import files_under, stage_into


class Server(ThreadingHTTPServer):
    """Serves `content` at any path; says it has `announced` bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.announced, self.status, self.requests = b"", 0, 200, 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{cifar10.ARCHIVE_NAME}"

    def serve(self, content: bytes) -> None:
        self.content, self.announced = content, len(content)


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(self.server.announced))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def sha256(path: Path) -> str:
    return f"sha256:{sha256_of_file(path)}"


class TestDownload:
    def test_downloads_once(self, tmp_path: Path, archive: Path, server: Server) -> None:
        server.serve(archive.read_bytes())
        for _ in range(2):
            manifest = stage_into(tmp_path, "download", checksum=sha256(archive), address=server.address)
        assert server.requests == 1
        assert manifest.source == "download"
        assert manifest.checksum == sha256(archive)
        assert files_under(tmp_path / "downloads") == [cifar10.ARCHIVE_NAME]

    def test_an_altered_download_is_fetched_again(self, tmp_path: Path, archive: Path, server: Server) -> None:
        server.serve(archive.read_bytes())
        stage_into(tmp_path, "download", checksum=sha256(archive), address=server.address)
        kept = tmp_path / "downloads" / cifar10.ARCHIVE_NAME
        kept.write_bytes(b"x" + kept.read_bytes()[1:])
        stage_into(tmp_path, "download", checksum=sha256(archive), address=server.address)
        assert server.requests == 2
        assert kept.read_bytes() == archive.read_bytes()

    def test_without_a_checksum_nothing_kept_is_trusted(self, tmp_path: Path, archive: Path, server: Server) -> None:
        server.serve(archive.read_bytes())
        for _ in range(2):
            assert stage_into(tmp_path, "download", checksum="none", address=server.address).checksum is None
        assert server.requests == 2

    def test_a_wrong_checksum_leaves_nothing(self, tmp_path: Path, archive: Path, server: Server) -> None:
        server.serve(archive.read_bytes())
        with pytest.raises(WorldError, match=rf"^http.*: its checksum is md5:[0-9a-f]+, expected was md5:{cifar10.ARCHIVE_MD5}"):
            stage_into(tmp_path, "download", checksum="upstream", address=server.address)
        assert files_under(tmp_path / "downloads") == []

    def test_a_download_that_breaks_off_leaves_nothing_and_the_next_goes_on(self, tmp_path: Path, archive: Path, server: Server) -> None:
        server.serve(archive.read_bytes())
        server.announced += 1
        with pytest.raises(WorldError, match=r"cannot be downloaded \(IncompleteRead.* 1 more expected\)\)\. Run it again"):
            stage_into(tmp_path, "download", checksum="none", address=server.address)
        assert files_under(tmp_path / "downloads") == []
        server.announced -= 1
        stage_into(tmp_path, "download", checksum="none", address=server.address)

    def test_a_fault_of_the_disk_is_not_called_one_of_the_network(self, tmp_path: Path, archive: Path, server: Server) -> None:
        server.serve(archive.read_bytes())
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large") as caught:
                fetch(server.address, tmp_path / "downloads/x", None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert caught.value.filename == str(tmp_path / "downloads/x")
        assert files_under(tmp_path / "downloads") == []

    def test_an_error_of_the_server_is_one_line(self, tmp_path: Path, server: Server) -> None:
        server.status = 503
        with pytest.raises(WorldError, match=r"cannot be downloaded \(HTTP Error 503: Service Unavailable\)"):
            stage_into(tmp_path, "download", address=server.address)

    def test_without_a_network_it_says_what_to_do(self, tmp_path: Path) -> None:
        with socket.socket() as unused:  # bound, but it does not listen
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(
                WorldError, match=r"\(\[Errno \d+\] Connection refused\)\. Run it again where .* give its path as `source:`\.$"
            ):
                stage_into(tmp_path, "download", address=f"http://127.0.0.1:{unused.getsockname()[1]}/x")

    def test_a_silent_server_is_given_up(self, tmp_path: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(WorldError, match=r"cannot be downloaded \(timed out\)"):
            fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/x", tmp_path / "x", None, timeout_s=0.2)
        assert files_under(tmp_path) == []
