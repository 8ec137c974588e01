"""This module encrypts the secrets of a run for one agent, because the streams of `srun` are not encrypted.

The method is HPKE (RFC 9180). Everyone can encrypt a text with the public key, and only the owner of the private key can decrypt the text. The method protects
the text from a person who reads the traffic. The controller's Python runs this module.
"""

from __future__ import annotations

import base64

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class Recipient:
    """Has a new private key, which never leaves this process."""

    def __init__(self) -> None:
        self._private_key = X25519PrivateKey.generate()
        self.public_key = base64.b64encode(self._private_key.public_key().public_bytes_raw()).decode()

    def open(self, sealed: str) -> str:
        """Return the text that `seal` has encrypted for the public key of this object. Raises InvalidTag for a text with another key."""
        return SUITE.decrypt(base64.b64decode(sealed), self._private_key).decode()


def seal(text: str, public_key: str) -> str:
    """Return `text`, encrypted for the owner of the public key. The result consists of letters, digits and the characters `+/=`."""
    return base64.b64encode(SUITE.encrypt(text.encode(), X25519PublicKey.from_public_bytes(base64.b64decode(public_key)))).decode()
