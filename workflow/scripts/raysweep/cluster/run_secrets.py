"""This module makes the secrets of a run, and encrypts the secrets for those who ask for them.

The controller's Python runs this module.
"""

from __future__ import annotations

import json
import secrets

from raysweep.cluster.channel import AgentKey, SealedSecrets, Secrets, Start
from raysweep.common.typed_json import to_json


def new_secrets(has_tls: bool) -> Secrets:
    """Return a new token, and a new certificate authority where Ray uses TLS."""
    authority = None
    if has_tls:
        from raysweep.cluster.certificates import new_authority  # the import takes 0.15 s, which a run without TLS saves

        authority = new_authority()
    return Secrets(secrets.token_hex(32), authority)


def seal_secrets(start: Start, request: AgentKey) -> SealedSecrets:
    """Return the secrets of `start`, encrypted for the agent or the job that asks for the secrets."""
    from raysweep.cluster.sealing import seal  # as in new_secrets

    return SealedSecrets(request.node, seal(json.dumps(to_json(start.secrets)), request.public_key))
