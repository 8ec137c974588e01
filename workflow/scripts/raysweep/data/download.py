"""Archives from the network: fetched in pieces, verified, and kept for the next run."""

from __future__ import annotations

import hashlib
import http.client
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from raysweep.common.errors import ConfigError, WorldError
from raysweep.common.files import written_aside

if TYPE_CHECKING:
    from hashlib import _Hash

logger = logging.getLogger("raysweep")

DIGEST_LENGTHS = {"md5": 32, "sha256": 64}  # hexadecimal digits


class Checksum(NamedTuple):
    """The digest that a file has to have."""

    algorithm: str
    digest: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"

    def new_hash(self) -> _Hash:
        """Return an empty hash of the algorithm, not for security, because a system in FIPS mode refuses MD5 otherwise."""
        return hashlib.new(self.algorithm, usedforsecurity=False)

    def digest_of(self, path: Path) -> str:
        """Return the digest of a file by the algorithm of this checksum."""
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, self.new_hash).hexdigest()

    def check(self, digest: str, place: str) -> None:
        """Raise WorldError where `digest`, that of the content at `place`, is another one."""
        if digest != self.digest:
            raise WorldError(
                f"{place}: its checksum is {self.algorithm}:{digest}, expected was {self}. It was not unpacked: get it again, "
                "or, if you trust this very file, give its checksum in the config."
            )


def parse_checksum(config_key: str, text: str, upstream: Checksum) -> Checksum | None:
    """Return the checksum that a config gives: `upstream` for the published one, None for `none`. Raises ConfigError for other texts."""
    if text == "none":
        return None
    if text == "upstream":
        return upstream
    algorithm, _, digest = text.partition(":")
    if algorithm not in DIGEST_LENGTHS or not re.fullmatch(rf"[0-9a-fA-F]{{{DIGEST_LENGTHS[algorithm]}}}", digest):
        allowed = ", ".join(f"{name}: with {length} hexadecimal digits" for name, length in DIGEST_LENGTHS.items())
        raise ConfigError(f"{config_key}.checksum: {text!r} is not allowed: give upstream, none, {allowed}.")
    return Checksum(algorithm, digest.lower())


def fetch(address: str, path: Path, expected: Checksum | None, timeout_s: float = 60) -> None:
    """Download `address` to `path`, which appears only when the download is complete and has the `expected` checksum."""
    logger.info("downloading %s to %s", address, path)
    with with_filename(path), written_aside(path, "wb") as stream:
        digest = None if expected is None else expected.new_hash()
        for chunk in _chunks(address, timeout_s):
            if digest is not None:
                digest.update(chunk)
            stream.write(chunk)
        if expected is not None and digest is not None:
            expected.check(digest.hexdigest(), address)


def _chunks(address: str, timeout_s: float) -> Iterator[bytes]:
    """Yield the content at `address` in pieces. Raises WorldError for faults of the network, and not for those of the consumer's disk."""
    try:
        with urllib.request.urlopen(address, timeout=timeout_s) as response:
            while chunk := response.read(2**20):
                yield chunk
            if response.length:  # bytes that the server announced and did not send
                raise http.client.IncompleteRead(b"", response.length)
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if type(error) is urllib.error.URLError else error
        raise WorldError(
            f"{address}: cannot be downloaded ({cause}). Run it again where the network is: on a cluster run `--until build_env` on a login node first; "
            "or fetch the file elsewhere, copy it here and give its path as `source:`."
        ) from error


@contextmanager
def with_filename(path: Path) -> Iterator[None]:
    """Give an error of the system that names no file, such as a write to a full disk, the name of the file that was written."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
