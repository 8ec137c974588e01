from __future__ import annotations

import base64

import pytest
from cryptography.exceptions import InvalidTag

from raysweep.cluster.sealing import Recipient, seal


@pytest.mark.parametrize("text", ["", "token", "ü" * 10_000])
def test_only_the_recipient_reads_what_was_sealed(text: str) -> None:
    recipient = Recipient()
    sealed = seal(text, recipient.public_key)
    assert recipient.open(sealed) == text
    assert text == "" or text.encode() not in base64.b64decode(sealed)
    assert seal(text, recipient.public_key) != sealed, "twice the same text is not seen to be the same"
    with pytest.raises(InvalidTag):
        Recipient().open(sealed)


def test_an_altered_text_is_refused() -> None:
    recipient = Recipient()
    sealed = bytearray(base64.b64decode(seal("token", recipient.public_key)))
    sealed[-1] ^= 1
    with pytest.raises(InvalidTag):
        recipient.open(base64.b64encode(sealed).decode())
