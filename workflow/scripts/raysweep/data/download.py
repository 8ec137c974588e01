"""Downloads an archive in chunks, verifies the archive's checksum, and keeps the archive for the next run."""

from __future__ import annotations

import hashlib
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from raysweep.common.errors import ConfigError, WorldError, logger
from raysweep.common.files import written_aside

if TYPE_CHECKING:
    from hashlib import _Hash


DIGEST_LENGTHS = {"md5": 32, "sha256": 64}  # length of a digest in hexadecimal digits, by algorithm


class Checksum(NamedTuple):
    """Contains the digest that a file must have, and the algorithm of that digest."""

    algorithm: str
    digest: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"

    def new_hash(self) -> _Hash:
        """Return a new hash object of the algorithm. The object is marked as not used for security, because FIPS mode otherwise forbids MD5."""
        return hashlib.new(self.algorithm, usedforsecurity=False)

    def digest_of(self, path: Path) -> str:
        """Return the digest of a file, computed with the algorithm of this checksum."""
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, self.new_hash).hexdigest()

    def check(self, digest: str, place: str) -> None:
        """Raise WorldError where `digest`, the digest of the content at `place`, differs from the digest of this checksum."""
        if digest != self.digest:
            raise WorldError(
                f"{place}: its checksum is {self.algorithm}:{digest}, expected was {self}. It was not unpacked: get it again, "
                "or, if you trust this very file, give its checksum in the config."
            )


def parse_checksum(config_key: str, text: str, upstream: Checksum) -> Checksum | None:
    """Return the checksum that `text`, the value in the config, means.

    The text "upstream" means the published checksum, which is the argument `upstream`. The text "none" means None. Other texts contain an algorithm and
    a digest, such as "md5:…". Raises ConfigError for a text that is not allowed.
    """
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
    """Download `address` to `path`. The file `path` appears only when the download is complete and has the `expected` checksum.

    `timeout_s` is the time in seconds for which one network operation may wait. Raises WorldError where the network fails or the checksum differs.
    """
    logger.info("downloading %s to %s", address, path)
    with written_aside(path, "wb") as stream:
        digest = None if expected is None else expected.new_hash()
        for chunk in _chunks(address, timeout_s):
            if digest is not None:
                digest.update(chunk)
            stream.write(chunk)
        if expected is not None and digest is not None:
            expected.check(digest.hexdigest(), address)


def _chunks(address: str, timeout_s: float) -> Iterator[bytes]:
    """Yield the content at `address` in chunks of bytes. Raises WorldError for network errors. Disk errors of the caller are not changed."""
    try:
        with urllib.request.urlopen(address, timeout=timeout_s) as response:
            while chunk := response.read(2**20):
                yield chunk
            if response.length:  # This is the number of bytes that the server announced but did not send.
                raise http.client.IncompleteRead(b"", response.length)
    except (OSError, http.client.HTTPException) as error:
        cause = error.reason if type(error) is urllib.error.URLError else error
        raise WorldError(
            f"{address}: cannot be downloaded ({cause}). Run it again where the network is: on a cluster run `--until build_env` on a login node first; "
            "or fetch the file elsewhere, copy it here and give its path as `source:`."
        ) from error
